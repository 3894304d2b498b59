"""The compiled kernels against torch in float32, on the shapes where they could go wrong: odd tails, bounds, NaN."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from server.engine.native.decoder_attention import DecoderStep, prepare  # noqa: E402
from server.engine.native.kernels import cpu  # noqa: E402
from server.engine.native.kv_cache import KVCache  # noqa: E402
from server.engine.native.layers.lora import LoraPart, LoraSite, SegmentDelta, pack_site  # noqa: E402
from server.engine.native.layers.lora_rows import RowLora  # noqa: E402
from server.engine.native.layers.relative_position import DecoderBias  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not cpu.can_run(torch.empty(0)), reason="needs AVX-512 and a build with a C++ compiler"),
]
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.03, "rtol": 0.02}}


@pytest.fixture(autouse=True, params=[1, 3], ids=["one-thread", "three-threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    cpu.set_num_threads(request.param)
    yield
    cpu.set_num_threads(1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (300, 512)])
def test_rms_norm_equals_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, gamma = draw(*shape, dtype=dtype), draw(shape[1], seed=1, dtype=dtype)
    wanted = functional.rms_norm(x.float(), shape[1:], gamma.float(), 1e-6)
    torch.testing.assert_close(cpu.rms_norm(x, gamma, 1e-6).float(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_gelu_large_and_small_gates_equal_torch(dtype: torch.dtype) -> None:
    gate = torch.linspace(-30, 30, 64).repeat(5, 1).to(dtype)
    linear = draw(5, 64, dtype=dtype)
    wanted = functional.gelu(gate.float(), approximate="tanh") * linear.float()
    torch.testing.assert_close(cpu.gated_gelu(torch.cat([gate, linear], 1)).float(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_takes_the_first_of_equals_and_names_rows_not_finite(dtype: torch.dtype) -> None:
    logits = draw(6, 160, dtype=dtype)
    logits[0, [150, 3, 40]] = 50.0
    logits[1, 159] = 50.0
    logits[2, 7] = float("nan")
    logits[3, 7] = float("inf")
    logits[4] = -1.0
    logits[5, :159] = float("-inf")
    assert cpu.argmax(logits).tolist() == [3, 159, -1, -1, 0, 159]


def attention(weight: Tensor, *, has_kernels: bool) -> tuple[Tensor, Tensor]:
    """Take three rows of different lengths two steps on; return the last step's two attentions."""
    cache = KVCache(num_layers=2, num_rows=4, num_heads=3, head_width=32, max_encoder_len=40, max_decoder_len=30,
                    weight=weight)  # fmt: skip
    cache.has_kernels = has_kernels
    for row, length in enumerate((33, 5, 16)):
        cache.write_cross(row, draw(length, 2, 2, 3, 32, seed=row, dtype=weight.dtype))
    bias = DecoderBias(draw(32, 3), max_len=30, max_distance=128)
    length_B = torch.tensor([33, 5, 16])
    position_B = torch.tensor([0, 19, 7])
    for slot in range(3):
        for cached in cache.own_slots(1):
            cached[slot, :, : position_B[slot]] = draw(3, int(position_B[slot]), 32, seed=slot, dtype=weight.dtype)
    for turn in range(2):
        token = torch.zeros(3, dtype=torch.long)
        mask = None if has_kernels else cache.cross_mask(length_B, 33)
        step = DecoderStep(token, position_B + turn, 20 + turn, length_B, 33, mask)
        made = prepare(cache, bias, step)
        own = made.own(1, draw(3, 9 * 32, seed=7 + turn, dtype=weight.dtype))
        cross = made.cross(1, draw(3, 3 * 32, seed=9 + turn, dtype=weight.dtype))
    return own.float(), cross.float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoder_attention_of_kernels_equals_torch(dtype: torch.dtype) -> None:
    found, wanted = (attention(torch.empty(0, dtype=dtype), has_kernels=has) for has in (True, False))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.abs().max() > 0.1
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


def site(num_inputs: int, dtype: torch.dtype, *parts: tuple[int, int, int], seed: int) -> LoraSite:
    made = [LoraPart(start, stop, 0.1 * draw(rank, stop - start, seed=seed + start)) for start, stop, rank in parts]
    total = sum(rank for *_, rank in parts)
    a_IR = 0.1 * draw(num_inputs, total, seed=seed)
    a_IR, parts = a_IR.to(dtype), tuple(LoraPart(part.start, part.stop, part.b_RO.to(dtype)) for part in made)
    return LoraSite(a_IR, parts, pack_site(a_IR, parts))


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_lora_mixed_ranks_equal_each_row_alone(dtype: torch.dtype) -> None:
    ranks = [(16, 16), (3, 0), (64, 64), (100, 5), (8, 17), (1, 1)]
    adapters = [
        {"qkv": site(48, dtype, *[part for part in ((0, 32, q), (64, 96, v)) if part[2]], seed=index)}
        for index, (q, v) in enumerate(ranks)
    ]
    segments = [
        (row, row + 1, adapters[index]) for row, index in ((0, 4), (1, 0), (3, 1), (4, 2), (5, 3), (6, 5), (8, 0))
    ]
    x, y = draw(10, 48, dtype=dtype), draw(10, 96, seed=1, dtype=dtype)
    wanted = y.float().clone()
    in_float = [(start, stop, {"qkv": _float(adapter["qkv"])}) for start, stop, adapter in segments]
    SegmentDelta(in_float).add("qkv", x.float(), wanted)
    before = y.clone()
    delta = RowLora().delta(segments)
    delta.add("elsewhere", x, y)
    assert torch.equal(y, before)
    delta.add("qkv", x, y)
    torch.testing.assert_close(y.float(), wanted, **TOLERANCE[dtype])
    for row in (2, 7, 9):
        assert torch.equal(y[row], before[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_lora_rows_that_lie_together_equal_torch(dtype: torch.dtype) -> None:
    ranks = [(16, 16), (3, 0), (64, 64), (1, 15), (8, 17)]
    adapters = [
        {"qkv": site(48, dtype, *[part for part in ((0, 32, q), (64, 96, v)) if part[2]], seed=index)}
        for index, (q, v) in enumerate(ranks)
    ]
    bounds = [(0, 13), (13, 14), (20, 60), (60, 69), (70, 100)]
    segments = [(*bound, adapter) for bound, adapter in zip(bounds, adapters, strict=True)]
    x, y = draw(103, 48, dtype=dtype), draw(103, 96, seed=1, dtype=dtype)
    wanted, before = y.float().clone(), y.clone()
    SegmentDelta([(a, b, {"qkv": _float(adapter["qkv"])}) for a, b, adapter in segments]).add("qkv", x.float(), wanted)
    RowLora().delta(segments).add("qkv", x, y)
    torch.testing.assert_close(y.float(), wanted, **TOLERANCE[dtype])
    assert torch.equal(y[14:20], before[14:20])
    assert torch.equal(y[100:], before[100:])


def _float(found: LoraSite) -> LoraSite:
    parts = tuple(LoraPart(part.start, part.stop, part.b_RO.float()) for part in found.parts)
    return LoraSite(found.a_IR.float(), parts)


def test_row_lora_overflow_in_one_row_stays_there() -> None:
    huge, fine = (site(16, torch.float32, (0, 16, 4), seed=seed) for seed in (0, 1))
    huge.a_IR.fill_(3e38)
    x, y = torch.ones(3, 16), torch.zeros(3, 16)
    RowLora().delta([(0, 1, {"o": huge}), (1, 2, {"o": fine})]).add("o", x, y)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()
    assert not y[2].any()


# Work comes from two threads at once, in pieces of very different sizes, some while the pool's threads are asleep.
def test_kernels_called_from_two_threads_at_once_do_all_of_their_work() -> None:
    weight, packed = draw(304, 64), cpu.pack(draw(304, 64))

    def check(seed: int) -> bool:
        x = draw(1 + seed % 37, 64, seed=seed)
        return torch.allclose(cpu.linear(x, packed, None), x @ weight.T, atol=1e-4)

    with ThreadPoolExecutor(max_workers=2) as threads:
        assert all(threads.map(check, range(400)))
