"""Measure the memory of real training steps by the record of PyTorch's own allocator.

It trains on random tokens and throws the result away. It does not know how memory is planned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from training.optimizer import RelativeAdamW
from training.studies.config import MemoryShape
from training.studies.memory_plan import forward_and_backward, step_inputs

_NUM_STEPS = 2
_STEPS_BEGIN = "steps begin"


def measure_steps(
    make_model: Callable[[], torch.nn.Module], shape: MemoryShape, dtype: torch.dtype, device: str = "cpu"
) -> int:
    """Return the most bytes PyTorch held at once during two training steps; weights and moments are among them.

    One thread goes through whole batches: each part of a batch that has a thread of its own keeps activations of its
    own, but no more of them altogether.

    Raises:
        Nothing.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        steps = _training(make_model, shape, dtype, device)
        torch.cuda.reset_peak_memory_stats()
        steps()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        steps = _training(make_model, shape, dtype, device)
        with record_function(_STEPS_BEGIN):
            pass
        steps()
    return _peak(recorder)


def _training(
    make_model: Callable[[], torch.nn.Module], shape: MemoryShape, dtype: torch.dtype, device: str
) -> Callable[[], None]:
    """Return the steps, with everything made that outlives them."""
    model = make_model().train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = RelativeAdamW(trainable.items())
    model.to(dtype)
    inputs, labels = step_inputs(model, shape, lambda length: _random_ids(model, shape.rows, length).to(device))

    def steps() -> None:
        for _ in range(_NUM_STEPS):
            *_, gradients = forward_and_backward(model, inputs, labels, list(trainable.values()))
            optimizer.step(dict(zip(trainable, gradients, strict=True)), learning_rate=1e-3)
            del gradients

    return steps


def _random_ids(model: torch.nn.Module, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


def _peak(recorder: profile) -> int:
    """Add up the allocator's record; the peak counts from where the steps begin."""
    events = recorder.profiler.kineto_results.events()
    begin_ns = next(event.start_ns() for event in events if event.name() == _STEPS_BEGIN)
    held = peak = 0
    for at_ns, num_bytes in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += num_bytes
        if at_ns >= begin_ns:
            peak = max(peak, held)
    return peak
