"""The int8 layer against the same integers multiplied by torch; rows that must not see each other."""

import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch", reason="needs torch")

from torch import Tensor  # noqa: E402

from server.core.errors import FailedPreconditionError  # noqa: E402
from server.engine.native.kernels import cpu  # noqa: E402
from server.engine.native.layers.int8_linear import DynamicInt8Linear  # noqa: E402
from server.engine.native.layers.quantized_linear import linear_maker  # noqa: E402

needs_kernel = pytest.mark.skipif(
    not cpu.can_multiply_int8(torch.empty(16, 16)), reason="needs AVX512_VNNI and a build with a C++ compiler"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return what the layer means, in float32, from exact sums of integers."""
    x_NI, weight_OI = x_NI.float(), weight_OI.float()
    x_top_N1, weight_top_O1 = (each.abs().amax(1, keepdim=True) for each in (x_NI, weight_OI))
    scale_O1 = weight_top_O1 / 127
    # Not 127 / x: torch takes the reciprocal, whose rounding can move a tie.
    x_int_NI = (x_NI * torch.tensor(127.0).div(x_top_N1)).round().long()
    weight_int_OI = (weight_OI / scale_O1).nan_to_num().round().long()
    return (x_int_NI @ weight_int_OI.t()).float() * (scale_O1.t() * (x_top_N1 / 127))


@needs_kernel
@DTYPES
@pytest.mark.parametrize("num_rows", [1, 3, 7, 17, 130])
@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (304, 512)])
def test_int8_linear_equals_the_product_of_its_integers(
    num_rows: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, x = draw(*shape, dtype=dtype), draw(num_rows, shape[1], seed=1, dtype=dtype)
    residual = draw(num_rows, shape[0], seed=2, dtype=dtype)
    weight[3] = 0
    x[0, 5] = 60.0
    x[num_rows // 2 :] *= 1e-3
    given, expected = x.clone(), product(x, weight)
    tolerance = {"rtol": 2**-8, "atol": 0.0} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 0.0}
    linear = DynamicInt8Linear(weight)
    torch.testing.assert_close(linear(x).float(), expected, **tolerance)
    with_residual = linear(x, residual)
    assert with_residual.dtype == dtype
    tolerance["atol"] = 1e-5
    torch.testing.assert_close(with_residual.float(), expected + residual.float(), **tolerance)
    assert torch.equal(x, given), "the input is the caller's"


@needs_kernel
@DTYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_int8_linear_row_that_is_not_finite_stays_alone(bad: float, dtype: torch.dtype) -> None:
    linear, x = DynamicInt8Linear(draw(64, 64, dtype=dtype)), draw(9, 64, seed=1, dtype=dtype)
    clean = linear(x)
    x[2, 63] = bad
    found = linear(x)
    assert found[2].isnan().all()
    others = [row for row in range(9) if row != 2]
    assert torch.equal(found[others], clean[others])


@needs_kernel
@DTYPES
def test_int8_linear_row_is_the_same_alone_and_beside_others(dtype: torch.dtype) -> None:
    linear, x = DynamicInt8Linear(draw(80, 64, dtype=dtype)), draw(21, 64, seed=1, dtype=dtype)
    x[20] *= 1e6
    together = linear(x)
    assert all(torch.equal(linear(x[row : row + 1])[0], together[row]) for row in range(21))


@needs_kernel
def test_int8_linear_of_joined_weights_equals_its_parts() -> None:
    weights, x = [draw(48, 64, seed=seed) * 4.0**seed for seed in range(3)], draw(5, 64, seed=9)
    parts = torch.cat([DynamicInt8Linear(weight)(x) for weight in weights], dim=1)
    assert torch.equal(DynamicInt8Linear(torch.cat(weights))(x), parts)


@needs_kernel
def test_int8_linear_counts_the_bytes_it_keeps() -> None:
    assert DynamicInt8Linear(draw(64, 256)).num_bytes == 64 * 256 + 8 * 64


@needs_kernel
@pytest.mark.parametrize("site", ["encoder.0.qkv", "decoder.1.wo", "lm_head"])
def test_int8_keeps_every_site_in_eight_bits(site: str) -> None:
    assert isinstance(linear_maker("int8")(site, draw(32, 32)), DynamicInt8Linear)


@pytest.mark.parametrize("shape", [(300, 64), (64, 40)])
def test_int8_linear_of_a_shape_not_in_sixteens_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(FailedPreconditionError, match="multiples of 16 inputs and outputs; use bitsandbytes-8bit"):
        DynamicInt8Linear(draw(*shape))


def test_int8_linear_without_the_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cpu", None)
    with pytest.raises(FailedPreconditionError, match="AVX512_VNNI"):
        DynamicInt8Linear(draw(64, 64))
