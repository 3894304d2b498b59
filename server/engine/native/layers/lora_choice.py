"""Which way LoRAs of mixed rows go on a device: by Triton's kernels where they run, else by torch's products."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from server.engine.native.layers.lora_triton import GroupedLora


def grouped_lora(*, device: torch.device, dtype: torch.dtype) -> "GroupedLora | None":
    """Return the kernels for a device, compiled, or None where torch's products do their work. Any thread."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from server.engine.native.layers.lora_triton import GroupedLora

    return GroupedLora(device=device, dtype=dtype)
