"""Layers against the plain formula, and rows against their neighbours."""

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from transformers import T5Config  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

from adapters.adapter_weights import LoraModule  # noqa: E402
from adapters.errors import InvalidAdapterError  # noqa: E402
from server.engine.native.kv_cache import KVCache  # noqa: E402
from server.engine.native.layers.attention import PackedAttention, Run, runs_of  # noqa: E402
from server.engine.native.layers.linear import PackedLinear  # noqa: E402
from server.engine.native.layers.lora import (  # noqa: E402
    LoraAdapter,
    LoraStack,
    SegmentDelta,
    StackedDelta,
    Target,
    build_lora,
)
from server.engine.native.layers.relative_position import DecoderBias, EncoderBias  # noqa: E402
from server.engine.native.layers.soft_prompt import embed_rows  # noqa: E402

CPU = torch.device("cpu")
# Of float32 against itself in another order, and of bfloat16's 8 bits on numbers of about 1.
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.03, "rtol": 0.02}}
TARGETS = {"q": Target("qkv", 0, 6), "k": Target("qkv", 6, 12), "v": Target("qkv", 12, 18)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(seed: int, scaling: float = 0.5, **ranks: int) -> tuple[LoraAdapter, torch.Tensor]:
    """Return an adapter of the given ranks by module, and the change of the fused weight it stands for."""
    modules, change = {}, torch.zeros(18, 8)
    for name, rank in ranks.items():
        a, b = draw(rank, 8, seed=seed), draw(6, rank, seed=seed + 1)
        modules[name] = LoraModule(a.numpy(), b.numpy(), scaling)
        change[TARGETS[name].start : TARGETS[name].stop] = scaling * b @ a
    return build_lora(modules, TARGETS, device=CPU, dtype=torch.float32), change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 3, 7, 17, 300])
def test_packed_linear_equals_plain_product(dtype: torch.dtype, num_rows: int) -> None:
    weight, x, residual = (
        draw(96, 64).to(dtype),
        draw(num_rows, 64, seed=1).to(dtype),
        draw(num_rows, 96, seed=2).to(dtype),
    )
    linear = PackedLinear(weight)
    exact = x.double() @ weight.double().T
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert torch.allclose(linear(x).double(), exact, atol=tolerance)
    assert torch.allclose(linear(x, residual).double(), exact + residual.double(), atol=tolerance)


def test_segment_delta_changes_its_own_rows_only() -> None:
    (first, change_first), (second, change_second) = lora(1, q=2, v=5), lora(3, k=4)
    x, y = draw(7, 8), torch.zeros(7, 18)
    SegmentDelta([(0, 2, first), (4, 7, second)]).add("qkv", x, y)
    wanted = torch.cat([x[:2] @ change_first.T, torch.zeros(2, 18), x[4:] @ change_second.T])
    assert torch.allclose(y, wanted, atol=1e-5)


def test_stacked_delta_mixed_rows_equal_each_row_alone() -> None:
    made = {"a": lora(1, q=2, v=5), "b": lora(3, 2.0, q=1, k=4, v=3), "c": lora(5, v=7)}
    digests = ["b", None, "a", "c", "a", None, "b"]
    x, y = draw(7, 8), torch.zeros(7, 18)
    StackedDelta(LoraStack({name: adapter for name, (adapter, _) in made.items()}), digests, device=CPU).add(
        "qkv", x, y
    )
    for index, digest in enumerate(digests):
        wanted = x[index] @ made[digest][1].T if digest else torch.zeros(18)
        assert torch.allclose(y[index], wanted, atol=1e-5), index


def test_stacked_delta_site_nobody_changes_is_left_alone() -> None:
    y = draw(2, 18)
    before = y.clone()
    StackedDelta(LoraStack({"a": lora(1, q=2)[0]}), ["a", None], device=CPU).add("elsewhere", draw(2, 8), y)
    assert torch.equal(y, before)


def test_stacked_delta_overflow_in_one_row_stays_there() -> None:
    made = {"huge": lora(1, q=2)[0], "fine": lora(3, q=2)[0]}
    made["huge"]["qkv"].a_IR.fill_(3e38)
    x, y = draw(3, 8).abs() * 10, torch.zeros(3, 18)
    StackedDelta(LoraStack(made), ["huge", "fine", None], device=CPU).add("qkv", x, y)
    assert not y[0].isfinite().all()
    assert y[1:].isfinite().all()


def test_build_lora_not_finite_after_scaling_is_refused() -> None:
    pairs = {"q": LoraModule(draw(2, 8).numpy(), draw(6, 2).numpy() * 1e30, 1e30)}
    with pytest.raises(InvalidAdapterError):
        build_lora(pairs, TARGETS, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_relative_position_bias_equals_transformers(is_decoder: bool) -> None:
    config = T5Config(d_model=8, d_kv=2, num_heads=3, is_decoder=is_decoder)
    layer = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weight = layer.relative_attention_bias.weight.detach()
    wanted = layer.compute_bias(300, 300).detach()
    if not is_decoder:
        assert torch.equal(EncoderBias(weight, max_len=400, max_distance=128)(300), wanted)
        return
    found = DecoderBias(weight, max_len=400, max_distance=128)(torch.tensor([0, 150, 299]), 300).view(3, 3, 300)
    for row, position in enumerate((0, 150, 299)):
        assert torch.equal(found[row, :, : position + 1], wanted[0, :, position, : position + 1])
        assert (found[row, :, position + 1 :] == float("-inf")).all()


def test_runs_of_equal_neighbours_are_joined() -> None:
    assert runs_of([3, 3, 5, 3]) == (Run(0, 2, 3), Run(6, 1, 5), Run(11, 1, 3))


def packed_attention(dtype: torch.dtype) -> PackedAttention:
    bias = EncoderBias(draw(32, 2).to(dtype), max_len=64, max_distance=128)
    return PackedAttention(bias, num_heads=2, head_width=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_row_with_nan_stays_alone(dtype: torch.dtype) -> None:
    attend = packed_attention(dtype).prepare(runs_of([4, 4, 2]))
    qkv = draw(10, 3 * 2 * 16).to(dtype)
    clean = attend(qkv)
    qkv[4:8] = float("nan")
    found = attend(qkv)
    assert torch.allclose(found[:4], clean[:4], atol=1e-6)
    assert torch.allclose(found[8:], clean[8:], atol=1e-6)
    assert found[4:8].isnan().all()


# One row is longer than a tile of queries and not a whole number of them, one ends a run, one is a single token.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_equals_each_row_alone_in_float32(dtype: torch.dtype) -> None:
    lengths = [29, 7, 7, 1, 64]
    attention, qkv = packed_attention(dtype), draw(sum(lengths), 3 * 2 * 16).to(dtype)
    bias = EncoderBias(draw(32, 2).to(dtype).float(), max_len=64, max_distance=128)
    found = attention.prepare(runs_of(lengths))(qkv)
    for row, mine in zip(qkv.float().split(lengths), found.split(lengths), strict=True):
        q, k, v = row.view(len(row), 3, 2, 16).permute(1, 2, 0, 3)
        wanted = torch.softmax(q @ k.mT + bias(len(row)), dim=-1) @ v
        torch.testing.assert_close(mine.float(), wanted[0].transpose(0, 1).flatten(1), **TOLERANCE[dtype])


def test_embed_rows_prompt_touches_its_text() -> None:
    table, prompt = draw(10, 4), draw(2, 4, seed=1)
    found = embed_rows(table, [(None, [3]), (prompt, [5, 6]), (None, [7])])
    assert torch.equal(found, torch.cat([table[[3]], prompt, table[[5, 6, 7]]]))


def test_kv_cache_moved_row_reads_the_same_and_cleared_row_is_zero() -> None:
    cache = KVCache(
        num_layers=2, num_rows=3, num_heads=2, head_width=4, max_encoder_len=6, max_decoder_len=5,
        weight=torch.zeros(1),
    )  # fmt: skip
    kv = draw(6, 2, 2, 2, 4)
    cache.write_cross(2, kv)
    places = cache.places(torch.tensor([3, 4, 0]))[4:]
    cache.append(1, draw(1, 2, 4), draw(1, 2, 4, seed=1), places)
    before = [view[4:].clone() for view in (*cache.cross(1, 3, 6), *cache.own(1, 3, 1))]
    assert torch.equal(before[0], kv[:, 1, 0].transpose(0, 1))
    assert torch.equal(before[2], draw(1, 2, 4).transpose(0, 1))
    cache.move(2, 0, num_encoder=6, num_decoder=1)
    after = [view[:2] for view in (*cache.cross(1, 3, 6), *cache.own(1, 3, 1))]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    cache.clear(0)
    assert not any(view[:2].any() for view in (*cache.cross(1, 3, 6), *cache.own(1, 3, 1)))
