"""Thousands of LoRAs as PEFT folders, quickly: one set of tensors, in each copy one value changed.

Files are float16, which halves the disk they need. Every folder has its own file, so reading one warms no other.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.models import write_loras
from server.engine.base import ResolvedAdapter

_WEIGHTS = "adapter_model.safetensors"


def write_many_loras(folder: Path, base: Path, count: int, *, rank: int = 8) -> list[ResolvedAdapter]:
    """Write LoRAs on q and v as folders ``many-0``, ``many-1``, …, and return them.

    Raises:
        OSError: If the disk is full.
    """
    (template,) = write_loras(folder / "template", base, [rank])
    tensors = {name: tensor.half() for name, tensor in load_file(template.path / _WEIGHTS).items()}
    save_file(tensors, template.path / _WEIGHTS)
    content = bytearray((template.path / _WEIGHTS).read_bytes())
    adapters = []
    for index in range(count):
        path = folder / f"many-{index}"
        path.mkdir()
        shutil.copy(template.path / "adapter_config.json", path)
        # The file ends with the last value of its last tensor.
        content[-2:] = np.float16(index / count).tobytes()
        (path / _WEIGHTS).write_bytes(content)
        adapters.append(ResolvedAdapter(path.name, template.kind, path, rank=rank))
    return adapters


def forget_cached(adapter: ResolvedAdapter) -> None:
    """Have the operating system drop its copy of the adapter's files, so that the next read goes to the disk."""
    for file in adapter.path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
