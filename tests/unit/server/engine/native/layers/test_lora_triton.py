"""The Triton kernels, run by Triton's interpreter on the CPU, against the torch layers they stand in for.

The same comparisons run compiled in tests/gpu.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="Triton offers no build for this platform")

from server.engine.native.layers.lora import LoraStack, SegmentDelta, StackedDelta  # noqa: E402
from server.engine.native.layers.weight_adapter import AdapterStack, WeightAdapter, segment_delta  # noqa: E402
from tests.fixtures.interpreted_triton import interpreted_lora_triton  # noqa: E402
from tests.fixtures.mixed_loras import draw_adapters, draw_rows, row_digests  # noqa: E402

if TYPE_CHECKING:
    from server.engine.native.layers.lora_triton import GroupedLora

    LoraOf = Callable[[torch.dtype], GroupedLora]

CPU = torch.device("cpu")
# The kernels add up in another order, and in float32 where torch rounds Ax to bfloat16.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2}}


@pytest.fixture(scope="module")
def lora_of() -> "LoraOf":
    """One per dtype, so that each test also meets the table another one left."""
    module = interpreted_lora_triton()
    made = {dtype: module.GroupedLora(device=CPU, dtype=dtype) for dtype in TOLERANCE}
    return made.__getitem__


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "ranks",
    [[16], [4, 8, 16, 64], [3, 7, 24, 1, 12, 33], [8] * 20],
    ids=["one", "powers of two", "odd", "many"],
)
def test_mixed_rows_equal_the_torch_layer(lora_of: "LoraOf", dtype: torch.dtype, ranks: list[int]) -> None:
    adapters = draw_adapters(ranks, dtype=dtype, device=CPU)
    digests = row_digests(adapters, num_rows=37)
    x, y = draw_rows(37, dtype=dtype, device=CPU)
    found, wanted = y.clone(), y.clone()
    segments = [(row, row + 1, adapters[digest]) for row, digest in enumerate(digests) if digest]
    lora_of(dtype).delta(segments).add("qkv", x, found)
    StackedDelta(LoraStack(adapters), digests, device=CPU).add("qkv", x, wanted)
    torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
    base = [row for row, digest in enumerate(digests) if digest is None]
    assert torch.equal(found[base], y[base]), "rows without an adapter are not touched"
    assert not torch.allclose(found, y, atol=1.0), "deltas too small prove nothing"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_long_segments_equal_the_torch_layer(lora_of: "LoraOf", dtype: torch.dtype) -> None:
    first, second, third = draw_adapters([5, 64, 16], dtype=dtype, device=CPU).values()
    segments = [(0, 130, first), (150, 151, second), (151, 260, third), (290, 300, first)]
    x, y = draw_rows(300, dtype=dtype, device=CPU)
    found, wanted = y.clone(), y.clone()
    lora_of(dtype).delta(segments).add("qkv", x, found)
    SegmentDelta(segments).add("qkv", x, wanted)
    torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
    assert torch.equal(found[130:150], y[130:150])
    assert torch.equal(found[260:290], y[260:290])


def test_weight_adapters_take_the_kernels_where_there_are_some(lora_of: "LoraOf") -> None:
    adapters = {
        name: WeightAdapter(lora, {}) for name, lora in draw_adapters([8, 3], dtype=torch.float32, device=CPU).items()
    }
    adapters["vectors only"] = WeightAdapter({}, {})
    x, y = draw_rows(6, dtype=torch.float32, device=CPU)
    digests = ["adapter-1", None, "adapter-0", "vectors only", "adapter-1", "adapter-0"]
    segments = [(2 * place, 2 * place + 2, adapter) for place, adapter in enumerate(adapters.values())]
    kernels = lora_of(torch.float32)
    for found, wanted in (
        (
            AdapterStack(adapters, {}, kernels).delta(digests, device=CPU),
            AdapterStack(adapters, {}).delta(digests, device=CPU),
        ),
        (segment_delta(segments, kernels), segment_delta(segments)),
    ):
        assert type(found.lora) is not type(wanted.lora)
        y_found, y_wanted = (delta.linear("qkv", lambda *_: y.clone(), x, None) for delta in (found, wanted))
        torch.testing.assert_close(y_found, y_wanted, **TOLERANCE[torch.float32])
        assert not torch.allclose(y_found, y, atol=1.0)
    assert isinstance(segment_delta(segments[:1], kernels).lora, SegmentDelta), "one adapter takes the dense path"


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_overflow_stays_in_the_rows_of_its_adapter(lora_of: "LoraOf") -> None:
    sound, broken = draw_adapters([8, 8], dtype=torch.float32, device=CPU).values()
    for part in broken["qkv"].parts:
        part.b_RO.fill_(3e38)
    x, y = draw_rows(5, dtype=torch.float32, device=CPU)
    x[3] = 0.0
    found, wanted = y.clone(), y.clone()
    lora_of(torch.float32).delta([(0, 1, sound), (1, 2, broken), (2, 3, sound), (3, 4, broken)]).add("qkv", x, found)
    SegmentDelta([(0, 1, sound), (2, 3, sound)]).add("qkv", x, wanted)
    assert not found[1].isfinite().all()
    neighbours = [0, 2, 3, 4]
    torch.testing.assert_close(found[neighbours], wanted[neighbours], **TOLERANCE[torch.float32])


def test_rows_of_a_wider_tensor_equal_rows_of_their_own(lora_of: "LoraOf") -> None:
    segments = [
        (row, row + 1, adapter)
        for row, adapter in enumerate(draw_adapters([8, 3], dtype=torch.float32, device=CPU).values())
    ]
    x, y = draw_rows(6, dtype=torch.float32, device=CPU)
    wide_x, wide_y = torch.cat([x, x], dim=1), torch.cat([y, y], dim=1)
    delta = lora_of(torch.float32).delta(segments)
    delta.add("qkv", wide_x[:, : x.shape[1]], wide_y[:, : y.shape[1]])
    assert torch.equal(wide_y[:, y.shape[1] :], y)
    delta.add("qkv", x, y)
    assert torch.equal(wide_y[:, : y.shape[1]], y)


def test_delta_made_before_another_stays_right(lora_of: "LoraOf") -> None:
    first, second, third = draw_adapters([8, 3, 16], dtype=torch.float32, device=CPU).values()
    x, y = draw_rows(4, dtype=torch.float32, device=CPU)
    segments = [(0, 2, first), (2, 4, second)]
    earlier = lora_of(torch.float32).delta(segments)
    lora_of(torch.float32).delta([(0, 4, third)])
    found, wanted = y.clone(), y.clone()
    earlier.add("qkv", x, found)
    SegmentDelta(segments).add("qkv", x, wanted)
    torch.testing.assert_close(found, wanted, **TOLERANCE[torch.float32])


def test_site_nobody_changes_is_left_alone(lora_of: "LoraOf") -> None:
    (adapter,) = draw_adapters([8], dtype=torch.float32, device=CPU).values()
    x, y = draw_rows(2, dtype=torch.float32, device=CPU)
    before = y.clone()
    lora_of(torch.float32).delta([(0, 2, adapter)]).add("elsewhere", x, y)
    assert torch.equal(y, before)


@pytest.mark.slow
def test_engine_imports_on_a_box_without_triton_and_web_packages() -> None:
    absent = ("triton", "pydantic", "fastapi", "starlette", "grpc", "bitsandbytes", "ctranslate2", "sqlalchemy", "peft")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import server.engine.native.engine"
    subprocess.run([sys.executable, "-c", code], check=True)
