"""The optimisers against torch's own AdamW, and what of them must be refused."""

import pytest

from training.config import LoopConfig
from training.errors import TrainingConfigError

pytestmark = pytest.mark.torch
RATES = [0.01, 0.02, 0.005]


def _weights():
    import torch

    generator = torch.Generator().manual_seed(3)
    return {name: torch.nn.Parameter(torch.randn(4, 5, generator=generator)) for name in ("one", "two")}


def _gradients():
    import torch

    generator = torch.Generator().manual_seed(4)
    return [{name: torch.randn(4, 5, generator=generator) for name in ("one", "two")} for _ in RATES]


def _reference():
    import torch

    weights = _weights()
    adamw = torch.optim.AdamW(weights.values(), betas=(0.9, 0.999), weight_decay=0.1)
    for rate, gradients in zip(RATES, _gradients(), strict=True):
        for group in adamw.param_groups:
            group["lr"] = rate
        for name, gradient in gradients.items():
            weights[name].grad = gradient
        adamw.step()
    return weights


def _run(optimizer):
    for rate, gradients in zip(RATES, _gradients(), strict=True):
        optimizer.step(gradients, rate)


def test_relative_adamw_without_scaling_and_clip_is_plain_adamw():
    import torch

    from training.optimizer import RelativeAdamW

    weights = _weights()
    _run(RelativeAdamW(weights.items(), betas=(0.9, 0.999), weight_decay=0.1, relative=False, clip=0.0))
    for name, expected in _reference().items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_paged_adamw_is_plain_adamw():
    import torch

    from training.optimizer import PagedAdamW

    weights = _weights()
    _run(PagedAdamW(weights.items(), betas=(0.9, 0.999), weight_decay=0.1))
    for name, expected in _reference().items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_paged_adamw_state_goes_on_where_it_was():
    import torch

    from training.optimizer import PagedAdamW

    options = {"betas": (0.9, 0.999), "weight_decay": 0.1}
    whole, weights = _weights(), _weights()
    _run(PagedAdamW(whole.items(), **options))
    first = PagedAdamW(weights.items(), **options)
    first.step(_gradients()[0], RATES[0])
    second = PagedAdamW(weights.items(), **options)
    second.load_state(first.state(), 1)
    for rate, gradients in list(zip(RATES, _gradients(), strict=True))[1:]:
        second.step(gradients, rate)
    for name, expected in whole.items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=0)


def test_paged_adamw_moments_are_paged_on_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: memory is paged between it and the host")
    from training.optimizer import PagedAdamW

    weights = {"large": torch.nn.Parameter(torch.randn(400, 400, device="cuda"))}
    optimizer = PagedAdamW(weights.items(), betas=(0.9, 0.999), weight_decay=0.0)
    optimizer.step({"large": torch.randn(400, 400, device="cuda")}, 0.01)
    state = optimizer._adamw.state[optimizer.masters["large"]]
    assert state["state1"].is_paged
    assert state["state2"].is_paged


def test_optimizer_paged_with_relative_updates_is_refused():
    import torch

    from training.loop import _optimizer

    config = LoopConfig(paged_optimizer=True)
    with pytest.raises(TrainingConfigError, match="plain AdamW"):
        _optimizer({}, config, torch.device("cpu"), num_lanes=1)


@pytest.mark.parametrize("settings", [{"relative_updates": False}, {"weight_decay": 0.1}])
def test_optimizer_orthogonal_with_what_it_does_not_do_is_refused(settings):
    import torch

    from training.loop import _optimizer

    config = LoopConfig(orthogonal_updates=True, **settings)
    with pytest.raises(TrainingConfigError, match="shares of their size"):
        _optimizer({}, config, torch.device("cpu"), num_lanes=1)


def test_limited_gradient_over_the_norm_is_scaled_whole():
    import torch

    from training.loop import _limited

    gradients = {"one": torch.tensor([3.0]), "two": torch.tensor([[4.0]]), "unused": None}
    assert _limited(gradients, 0.0) is gradients
    half = _limited(gradients, 2.5)
    torch.testing.assert_close(half["one"], torch.tensor([1.5]), rtol=1e-5, atol=0)
    torch.testing.assert_close(half["two"], torch.tensor([[2.0]]), rtol=1e-5, atol=0)
    assert half["unused"] is None
    torch.testing.assert_close(_limited(gradients, 9.0)["one"], torch.tensor([3.0]))


def _layered():
    import torch

    generator = torch.Generator().manual_seed(5)
    shapes = {"block.0.q.weight": (8, 8), "block.0.wi.weight": (16, 8), "shared.weight": (9, 8), "norm.weight": (8,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def _layered_gradients(weights, steps=6):
    import torch

    generator = torch.Generator().manual_seed(6)
    return [
        {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()} for _ in range(steps)
    ]


def test_relative_muon_turns_a_matrix_alike_in_all_directions_by_its_share():
    import torch

    from training.optimizer import RelativeMuon

    weights = _layered()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    RelativeMuon(weights.items(), (0.9, 0.98)).step(_layered_gradients(weights)[0], 0.01)
    for name in ("block.0.q.weight", "block.0.wi.weight"):
        update = weights[name].detach() - before[name]
        stretches = torch.linalg.svdvals(update)
        # Its five steps bring each of them to within 0.7 to 1.2 of the same.
        assert stretches.max() / stretches.min() < 2
        share = update.square().mean().sqrt() / before[name].square().mean().sqrt()
        assert share == pytest.approx(0.01, rel=0.25)


def test_relative_muon_moves_embeddings_and_norms_as_relative_adamw_does():
    import torch

    from training.optimizer import RelativeAdamW, RelativeMuon

    weights, plain = _layered(), _layered()
    RelativeMuon(weights.items(), (0.9, 0.98)).step(_layered_gradients(weights)[0], 0.01)
    RelativeAdamW(plain.items(), (0.9, 0.98)).step(_layered_gradients(plain)[0], 0.01)
    for name in ("shared.weight", "norm.weight"):
        assert torch.equal(weights[name], plain[name])
    assert not torch.equal(weights["block.0.q.weight"], plain["block.0.q.weight"])


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_relative_muon_goes_on_where_it_was_with_any_number_of_lanes(num_lanes):
    import torch

    from training.optimizer import RelativeMuon

    whole, weights = _layered(), _layered()
    unbroken = RelativeMuon(whole.items(), (0.9, 0.98))
    for gradients in _layered_gradients(whole):
        unbroken.step(gradients, 0.01)
    optimizer = RelativeMuon(weights.items(), (0.9, 0.98), num_lanes)
    for done, gradients in enumerate(_layered_gradients(weights)):
        if done == 3:
            kept, optimizer = optimizer, RelativeMuon(weights.items(), (0.9, 0.98), num_lanes)
            optimizer.load_state(kept.state(), done)
        optimizer.step(gradients, 0.01)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
