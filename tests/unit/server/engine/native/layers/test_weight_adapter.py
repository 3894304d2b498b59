"""Weight adapters of every family: laid out at load, they give what the plain formula gives."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from adapters.adapter_weights import LinearChange, LoraModule, WeightAdapterWeights  # noqa: E402
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError  # noqa: E402
from server.engine.native.layers.linear import PackedLinear  # noqa: E402
from server.engine.native.layers.lora import Target  # noqa: E402
from server.engine.native.layers.weight_adapter import (  # noqa: E402
    AdaptableBase,
    AdapterStack,
    WeightAdapter,
    build_weight_adapter,
    segment_delta,
)

CPU = torch.device("cpu")
TARGETS = {"q": Target("qkv", 0, 6), "k": Target("qkv", 6, 12), "v": Target("qkv", 12, 18), "o": Target("o", 0, 8)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {name: draw(target.stop - target.start, 8, seed=ord(name)) for name, target in TARGETS.items()}
SITES = {
    "qkv": PackedLinear(torch.cat([WEIGHTS[name] for name in "qkv"])),
    "o": PackedLinear(WEIGHTS["o"]),
}
BASE = AdaptableBase(TARGETS, {"final": torch.ones(8)}, WEIGHTS.__getitem__)


def pair(seed: int, out: int, scaling: float = 0.5) -> LoraModule:
    return LoraModule(draw(3, 8, seed=seed).numpy(), draw(out, 3, seed=seed + 1).numpy(), scaling)


def vector(seed: int, width: int) -> "torch.Tensor":
    return (draw(width, seed=seed).abs() + 0.5).numpy()


CHANGES: dict[str, dict[str, LinearChange]] = {
    "lora": {"q": LinearChange(lora=pair(1, 6))},
    "dora": {"v": LinearChange(lora=pair(3, 6), magnitude=vector(1, 6)), "o": LinearChange(magnitude=vector(2, 8))},
    "ia3": {"k": LinearChange(output_scale=vector(3, 6)), "o": LinearChange(input_scale=vector(4, 8))},
    "lora-bias": {"o": LinearChange(lora=pair(5, 8), bias=vector(5, 8))},
    "everything": {
        "q": LinearChange(pair(7, 6), vector(6, 6), vector(7, 8), vector(8, 6), vector(9, 6)),
        "o": LinearChange(pair(9, 8), vector(6, 8), vector(7, 8), vector(8, 8), vector(9, 8)),
    },
}


def plain(change: LinearChange, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The formula of :class:`LinearChange` for one row, where the LoRA takes the input as it is."""
    given = {
        name: None if part is None else torch.as_tensor(part) for name, part in vars(change).items() if name != "lora"
    }
    b_a = torch.zeros_like(weight)
    if change.lora is not None:
        b_a = change.lora.scaling * torch.as_tensor(change.lora.lora_b) @ torch.as_tensor(change.lora.lora_a)
    y = weight @ (x if given["input_scale"] is None else x * given["input_scale"]) + b_a @ x
    if given["magnitude"] is not None:
        y = y * given["magnitude"] / (weight + b_a).norm(dim=1)
    if given["bias"] is not None:
        y = y + given["bias"]
    return y if given["output_scale"] is None else y * given["output_scale"]


def build(changes: dict[str, LinearChange], dtype: torch.dtype = torch.float32) -> WeightAdapter:
    return build_weight_adapter(WeightAdapterWeights(changes, {}), BASE, device=CPU, dtype=dtype)


def wanted(name: str | None, site: str, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    changes = CHANGES.get(name, {})
    paths = [path for path, target in TARGETS.items() if target.site == site]
    return torch.cat([plain(changes.get(path, LinearChange()), WEIGHTS[path], x) for path in paths]) + residual


@pytest.mark.parametrize("site", SITES)
def test_mixed_rows_equal_each_row_alone(site: str) -> None:
    rows = [None, *CHANGES, None, *reversed(CHANGES)]
    stack = AdapterStack({name: build(changes) for name, changes in CHANGES.items()}, BASE.norms)
    x = draw(len(rows), 8)
    residual = draw(len(rows), 8, seed=1) if site == "o" else None
    y = stack.delta(rows, device=CPU).linear(site, SITES[site], x, residual)
    for index, name in enumerate(rows):
        own = torch.zeros(1) if residual is None else residual[index]
        assert torch.allclose(y[index], wanted(name, site, x[index], own), atol=1e-4), name


@pytest.mark.parametrize("site", SITES)
def test_segments_equal_each_row_alone(site: str) -> None:
    names = list(CHANGES)
    delta = segment_delta([(2 * index, 2 * index + 2, build(CHANGES[name])) for index, name in enumerate(names)])
    assert delta is not None
    x = draw(2 * len(names) + 1, 8)
    y = delta.linear(site, SITES[site], x, None)
    for index, row in enumerate(x):
        name = names[index // 2] if index // 2 < len(names) else None
        assert torch.allclose(y[index], wanted(name, site, row, torch.zeros(1)), atol=1e-4), name


def test_plain_loras_bring_no_vectors() -> None:
    adapter = build(CHANGES["lora"])
    assert adapter.vectors == {}
    delta = segment_delta([(0, 1, adapter)])
    assert delta is not None
    assert delta.elementwise is None
    assert AdapterStack({"lora": adapter}, BASE.norms).delta(["lora", None], device=CPU).elementwise is None


@pytest.mark.parametrize(
    "weights",
    [
        WeightAdapterWeights({"lm_head": LinearChange(bias=vector(1, 6))}, {}),
        WeightAdapterWeights({}, {"elsewhere": vector(1, 8)}),
    ],
)
def test_layer_that_takes_no_adapters_is_refused(weights: WeightAdapterWeights) -> None:
    with pytest.raises(UnsupportedAdapterError):
        build_weight_adapter(weights, BASE, device=CPU, dtype=torch.float32)


def test_magnitude_over_a_weight_of_zero_is_refused() -> None:
    base = replace(BASE, read_weight=lambda path: torch.zeros(8, 8))
    weights = WeightAdapterWeights({"o": LinearChange(magnitude=vector(1, 8))}, {})
    with pytest.raises(InvalidAdapterError):
        build_weight_adapter(weights, base, device=CPU, dtype=torch.float32)
