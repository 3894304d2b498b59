"""The Triton kernels, compiled, against the torch layers on the same device."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="needs Triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from server.engine.native.layers.lora import LoraStack, SegmentDelta, StackedDelta  # noqa: E402
from server.engine.native.layers.lora_triton import GroupedLora  # noqa: E402
from tests.fixtures.mixed_loras import draw_adapters, draw_rows, row_digests  # noqa: E402

CUDA = torch.device("cuda")
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2}}
# Inputs and parts: q, k and v of FLAN-T5-small and -base, and widths no power of two divides.
SHAPES = {
    "small": (512, ((0, 384), (384, 768), (768, 1152))),
    "base": (768, ((0, 768), (768, 1536), (1536, 2304))),
    "odd": (83, ((0, 45), (45, 146), (146, 347))),
}
RANKS = {"one": [16], "mixed": [4, 8, 16, 64], "odd": [3, 7, 24, 1, 12, 33], "many": [8, 16, 32, 64] * 8}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("num_rows", [1, 16, 37, 256])
def test_decode_rows_equal_the_torch_layer(dtype: torch.dtype, shape: str, ranks: str, num_rows: int) -> None:
    inputs, parts = SHAPES[shape]
    adapters = draw_adapters(RANKS[ranks], dtype=dtype, device=CUDA, inputs=inputs, parts=parts)
    digests = row_digests(adapters, num_rows=num_rows)
    x, y = draw_rows(num_rows, dtype=dtype, device=CUDA, inputs=inputs, outputs=parts[-1][1])
    kernels = GroupedLora(device=CUDA, dtype=dtype)
    found, wanted = y.clone(), y.clone()
    segments = [(row, row + 1, adapters[digest]) for row, digest in enumerate(digests) if digest]
    kernels.delta(segments).add("qkv", x, found)
    StackedDelta(LoraStack(adapters), digests, device=CUDA).add("qkv", x, wanted)
    torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
    base = [row for row, digest in enumerate(digests) if digest is None]
    assert torch.equal(found[base], y[base])
    assert not torch.equal(found, y)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_encoder_segments_equal_the_torch_layer(dtype: torch.dtype, shape: str) -> None:
    inputs, parts = SHAPES[shape]
    ranks = [5, 64, 16, 8]
    first, second, third, fourth = draw_adapters(ranks, dtype=dtype, device=CUDA, inputs=inputs, parts=parts).values()
    segments = [(0, 1300, first), (1500, 1501, second), (1501, 2600, third), (2900, 4096, fourth)]
    x, y = draw_rows(4096, dtype=dtype, device=CUDA, inputs=inputs, outputs=parts[-1][1])
    kernels = GroupedLora(device=CUDA, dtype=dtype)
    found, wanted = y.clone(), y.clone()
    kernels.delta(segments).add("qkv", x, found)
    SegmentDelta(segments).add("qkv", x, wanted)
    torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
    assert torch.equal(found[1300:1500], y[1300:1500])


def test_overflow_stays_in_the_rows_of_its_adapter() -> None:
    sound, broken = draw_adapters([8, 8], dtype=torch.float32, device=CUDA).values()
    for part in broken["qkv"].parts:
        part.b_RO.fill_(3e38)
    x, y = draw_rows(4, dtype=torch.float32, device=CUDA)
    kernels = GroupedLora(device=CUDA, dtype=torch.float32)
    found, wanted = y.clone(), y.clone()
    kernels.delta([(0, 1, sound), (1, 2, broken), (2, 3, sound)]).add("qkv", x, found)
    SegmentDelta([(0, 1, sound), (2, 3, sound)]).add("qkv", x, wanted)
    assert not found[1].isfinite().all()
    torch.testing.assert_close(found[[0, 2, 3]], wanted[[0, 2, 3]], **TOLERANCE[torch.float32])
