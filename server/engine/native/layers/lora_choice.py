"""Which way LoRAs of mixed rows go: by a kernel where one runs (Triton's on a GPU, ours on a CPU), else by torch."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from server.engine.native.kernels import cpu
from server.engine.native.layers.lora import LoraAdapter, LoraDelta


class GroupedLora(Protocol):
    """A kernel that takes several adapters at once, each where it lies."""

    def delta(self, segments: Sequence[tuple[int, int, LoraAdapter]]) -> LoraDelta:
        """Return the delta of adapters that each own contiguous rows, (first, one past the last, adapter)."""
        ...


def grouped_lora(weight: Tensor, widths: Sequence[int]) -> GroupedLora | None:
    """Return the kernel for a model, compiled, or None where torch's products do its work. Any thread.

    Args:
        weight: A weight of the model: says device and dtype.
        widths: Input and output widths of its linear layers.
    """
    if cpu.can_run(weight, widths=widths):
        from server.engine.native.layers.lora_rows import RowLora

        return RowLora()
    if weight.device.type != "cuda" or find_spec("triton") is None:
        return None
    from server.engine.native.layers import lora_triton

    return lora_triton.GroupedLora(device=weight.device, dtype=weight.dtype)
