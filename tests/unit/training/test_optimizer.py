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
        _optimizer({}, config, torch.device("cpu"))


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
