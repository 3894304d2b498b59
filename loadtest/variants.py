"""Adapters like another one: as good, with weights and a digest of their own. For runs that need many, or new ones.

The last bit of a half of the weights is turned over, each at random: less than 1 % of a weight even in bfloat16, and a
finite number stays one. Knows no server.

Source:
    The form of the file: https://huggingface.co/docs/safetensors (an 8-byte length, a JSON header, then the tensors).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

_WEIGHTS = "adapter_model.safetensors"
_LENGTH_BYTES = 8
_ELEMENTS: Mapping[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}


class SourceError(ValueError):
    """There is no adapter to make variants of."""


class Variants:
    """Makes variants of one adapter.

    Args:
        source: A PEFT folder, or the name of a shipped adapter.

    Raises:
        SourceError: If it is neither, or its weights are in no form that can be varied.
    """

    def __init__(self, source: str) -> None:
        with _folder(source) as folder:
            try:
                self._weights = (folder / _WEIGHTS).read_bytes()
                self._others = {
                    path.name: path.read_bytes()
                    for path in folder.iterdir()
                    if path.is_file() and path.name != _WEIGHTS
                }
                self._places = _places(self._weights)
            except (OSError, ValueError, KeyError) as error:
                raise SourceError(f"{source}: no adapter to make variants of: {error}") from error

    @contextmanager
    def folder(self, *number: int) -> Iterator[Path]:
        """Give a folder with a variant; the same number gives the same weights. It is gone afterwards."""
        draws = np.random.default_rng(number)
        weights = np.frombuffer(self._weights, dtype=np.uint8).copy()
        for start, end, element in self._places:
            tensor = weights[start:end].view(element)
            tensor ^= draws.integers(0, 2, tensor.size, dtype=element.newbyteorder("="))
        with TemporaryDirectory(prefix="medley-variant-") as made:
            folder = Path(made)
            for name, content in self._others.items():
                (folder / name).write_bytes(content)
            (folder / _WEIGHTS).write_bytes(weights.tobytes())
            yield folder


@contextmanager
def _folder(source: str) -> Iterator[Path]:
    if source and Path(source).is_dir():
        yield Path(source)
        return
    shipped = files("adapters") / "library" / Path(source).name
    if not source or Path(source).name != source or not shipped.is_dir():
        raise SourceError(f"{source!r} is neither a folder nor a shipped adapter")
    with as_file(shipped) as folder:
        yield folder


def _places(weights: bytes) -> list[tuple[int, int, np.dtype[Any]]]:
    """Return where each tensor begins and ends, and what its elements are."""
    start = _LENGTH_BYTES + int.from_bytes(weights[:_LENGTH_BYTES], "little")
    tensors = {name: one for name, one in json.loads(weights[_LENGTH_BYTES:start]).items() if name != "__metadata__"}
    return [
        (start + one["data_offsets"][0], start + one["data_offsets"][1], _ELEMENTS[one["dtype"]])
        for _, one in sorted(tensors.items())
    ]
