"""Quantized layers against bitsandbytes' own modules; fused layers against their parts."""

import logging
import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("bitsandbytes", reason="the layers are its")

from server.core.errors import FailedPreconditionError, InvalidArgumentError  # noqa: E402
from server.engine.native.config import NativeEngineConfig  # noqa: E402
from server.engine.native.layers.linear import PackedLinear  # noqa: E402
from server.engine.native.layers.quantized_linear import linear_maker  # noqa: E402

KINDS = ["bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def their_layer(kind: str, weight: torch.Tensor) -> torch.nn.Module:
    import bitsandbytes

    num_out, num_in = weight.shape
    if kind == "bitsandbytes-8bit":
        layer = bitsandbytes.nn.Linear8bitLt(num_in, num_out, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(num_in, num_out, bias=False, compute_dtype=weight.dtype)
        layer.weight = bitsandbytes.nn.Params4bit(
            weight.clone(), requires_grad=False, compress_statistics=kind.endswith("double"), quant_type="nf4"
        )
    return layer.to("cpu").eval()


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outlier", [1.0, 40.0], ids=["calm", "outliers"])
@torch.inference_mode()
def test_quantized_linear_equals_the_librarys_layer(kind: str, dtype: torch.dtype, outlier: float) -> None:
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    weight, x, residual = (
        draw(96, 128, dtype=dtype),
        draw(5, 128, seed=1, dtype=dtype),
        draw(5, 96, seed=2, dtype=dtype),
    )
    x[1, 7] = outlier
    given = x.clone()
    expected = their_layer(kind, weight)(x)
    linear = linear_maker(kind)("qkv", weight.clone())
    assert torch.equal(linear(x), expected)
    assert torch.equal(linear(x, residual), expected + residual)
    assert torch.equal(x, given), "the input is the caller's"


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_quantized_linear_of_joined_weights_equals_its_parts(kind: str, dtype: torch.dtype) -> None:
    weights = [draw(64, 192, seed=seed, dtype=dtype) * 2.0**seed for seed in range(3)]
    x, make = draw(9, 192, seed=9, dtype=dtype), linear_maker(kind)
    parts = torch.cat([make("qkv", weight.clone())(x) for weight in weights], dim=1)
    # Doubly quantized scales are grouped across rows, 256 at a time around their mean: joined they differ a little.
    tolerance = 0.05 if kind.endswith("double") else 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(
        make("qkv", torch.cat(weights))(x), parts, rtol=tolerance, atol=tolerance * float(parts.std())
    )


@pytest.mark.parametrize(("kind", "most_bits"), list(zip(KINDS, (8.3, 4.6, 4.6), strict=True)))
def test_quantized_linear_counts_the_bytes_it_keeps(kind: str, most_bits: float) -> None:
    weight = draw(256, 256)
    assert 4 < linear_maker(kind)("qkv", weight).num_bytes * 8 / weight.numel() < most_bits
    assert PackedLinear(weight).num_bytes == weight.nbytes


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_quantized_linear_row_with_nan_stays_alone(kind: str) -> None:
    linear, x = linear_maker(kind)("qkv", draw(64, 64)), draw(4, 64, seed=1)
    clean = linear(x)
    x[2, 5] = float("nan")
    found = linear(x)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


def test_quantized_linear_of_a_shape_without_whole_blocks_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="multiple of 64 inputs"):
        linear_maker("bitsandbytes-4bit")("qkv", draw(64, 96))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["encoder.0.wo", "lm_head"])
def test_library_leaves_the_head_and_feed_forward_outputs_alone(kind: str, site: str) -> None:
    assert isinstance(linear_maker(kind)(site, draw(64, 64)), PackedLinear)
    assert not isinstance(linear_maker(kind)("encoder.0.wi", draw(64, 64)), PackedLinear)


def test_quantization_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert isinstance(linear_maker("none")("qkv", draw(64, 64)), PackedLinear)
    with pytest.raises(FailedPreconditionError, match=r"medley\[quantization\]"):
        linear_maker("bitsandbytes-8bit")


def test_quantization_of_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="bitsandbytes-8bit"):
        NativeEngineConfig("base", quantization="int3")


def test_library_is_imported_only_when_asked_for_and_in_silence() -> None:
    code = (
        "import sys; import server.engine.native.engine; from server.engine.native.layers import quantized_linear as q;"
        "q.linear_maker('none'); assert 'bitsandbytes' not in sys.modules;"
        "q.linear_maker('bitsandbytes-8bit'); assert 'bitsandbytes' in sys.modules"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")
