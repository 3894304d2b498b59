"""Thousands of LoRAs as PEFT folders, quickly: one set of tensors of each rank, in each copy one value changed.

Files are float16, which halves the disk they need. Every folder has its own file, so reading one warms no other.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save

from adapters.manifest import AdapterKind
from benchmarks.models import write_loras
from server.engine.base import ResolvedAdapter

_WEIGHTS = "adapter_model.safetensors"


def write_many_loras(folder: Path, base: Path, count: int, *, ranks: Sequence[int] = (8,)) -> list[ResolvedAdapter]:
    """Write LoRAs on q and v as folders ``many-0``, ``many-1``, …, and return them; ranks come by turns.

    Raises:
        OSError: If the disk is full.
    """
    templates = [_Template(written.path, written.rank) for written in write_loras(folder / "templates", base, ranks)]
    adapters = []
    for index in range(count):
        template = templates[index % len(templates)]
        path = folder / f"many-{index}"
        template.copy(path, index / count)
        adapters.append(ResolvedAdapter(path.name, AdapterKind.LORA, path, rank=template.rank))
    return adapters


class _Template:
    """A LoRA of which copies are made."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._config = folder / "adapter_config.json"
        self.rank = rank
        tensors = {name: tensor.half() for name, tensor in load_file(folder / _WEIGHTS).items()}
        self._content = bytearray(save(tensors))

    def copy(self, folder: Path, last_value: float) -> None:
        folder.mkdir()
        shutil.copy(self._config, folder)
        # The file ends with the last value of its last tensor.
        self._content[-2:] = np.float16(last_value).tobytes()
        (folder / _WEIGHTS).write_bytes(self._content)


def forget_cached(adapter: ResolvedAdapter) -> None:
    """Have the operating system drop its copy of the adapter's files, so that the next read goes to the disk."""
    for file in adapter.path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
