"""A reader of safetensors files from strangers: header first, every number in it checked, then tensor by tensor.

Our own, because the file is hostile until shown otherwise and because it must never cost more memory than the file is
long. Knows no adapters: what the tensors mean is the codec's business. Every function may be called from any thread.

Source:
    Format: https://github.com/huggingface/safetensors/blob/v0.8.0/README.md#format
"""

import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from adapters.adapter_weights import Float32Array
from adapters.errors import AdapterTooLargeError, InvalidAdapterError
from adapters.strict_json import parse_object, show

_NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
FLOAT_DTYPES = tuple(_NUMPY_DTYPES)
_DTYPES_BY_BYTES = {
    8: ("F64", "I64", "U64", "C64"),
    4: ("F32", "I32", "U32"),
    2: ("F16", "BF16", "I16", "U16"),
    1: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
}
_ITEM_BYTES = {dtype: num_bytes for num_bytes, dtypes in _DTYPES_BY_BYTES.items() for dtype in dtypes}
_LENGTH_BYTES = 8
_MAX_MAGIC_BYTES = 32
_METADATA_KEY = "__metadata__"
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_NUM_DIMS = 8
_MAX_SIZE = 2**63
_INTEGERS = frozenset({int})
_FOREIGN_FORMATS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


class TensorEntry(NamedTuple):
    """Where one tensor is.

    Attributes:
        dtype: As the format names it, ``F32`` for instance.
        shape: Its dimensions.
        start: Offset of its first byte from the beginning of the file.
        num_bytes: Its length.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Limits a header must keep.

    Attributes:
        max_header_bytes: Longest header.
        max_tensors: Most tensors.
    """

    max_header_bytes: int
    max_tensors: int


def foreign_format(start: bytes) -> str | None:
    """Return what a file that is neither text nor safetensors is, if its first bytes tell.

    A sound safetensors file can begin with the same bytes (its header's length): ask only once it is known to be none.
    """
    return next((name for magic, name in _FOREIGN_FORMATS.items() if start.startswith(magic)), None)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, never following a symbolic link nor waiting for a pipe's other end.

    Raises:
        OSError: If it cannot be opened, or is a link or anything else than a file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_header(file: BinaryIO, limits: HeaderLimits) -> dict[str, TensorEntry]:
    """Return every tensor of an open safetensors file, by name in the order of the file's bytes.

    Raises:
        InvalidAdapterError: If the file is another format, or the header is cut off, malformed, repeats a key, or its
            offsets do not cover the data exactly once.
        AdapterTooLargeError: If the header or the number of tensors is over its limit.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > file_bytes - _LENGTH_BYTES:
        file.seek(0)
        foreign = foreign_format(file.read(_MAX_MAGIC_BYTES)) or "cut off, or no safetensors file"
        raise InvalidAdapterError(
            f"the weights file is {foreign}; save it again as safetensors (safe_serialization=True)"
        )
    if header_bytes > limits.max_header_bytes:
        raise AdapterTooLargeError(
            f"the safetensors header has {header_bytes} bytes; at most {limits.max_header_bytes} are taken"
        )
    file.seek(_LENGTH_BYTES)
    raw = parse_object(file.read(header_bytes), "the safetensors header")
    _check_metadata(raw.pop(_METADATA_KEY, {}))
    if len(raw) > limits.max_tensors:
        raise AdapterTooLargeError(f"the file has {len(raw)} tensors; at most {limits.max_tensors} are taken")
    entries = {name: _entry(name, value, _LENGTH_BYTES + header_bytes) for name, value in raw.items()}
    return _in_file_order(entries, _LENGTH_BYTES + header_bytes, file_bytes)


def read_tensor(file: BinaryIO, name: str, entry: TensorEntry) -> Float32Array:
    """Return one floating-point tensor as float32; bfloat16 and float16 are widened without loss.

    Raises:
        InvalidAdapterError: If its dtype is none of F32, F16, BF16, or the file is shorter than its header said.
    """
    if entry.dtype not in FLOAT_DTYPES:
        raise InvalidAdapterError(f"{show(name)} has dtype {entry.dtype}; use one of {', '.join(FLOAT_DTYPES)}")
    stored = np.empty(entry.shape, _NUMPY_DTYPES[entry.dtype])
    file.seek(entry.start)
    if file.readinto(stored) != entry.num_bytes:  # type: ignore[attr-defined]
        raise InvalidAdapterError(f"{show(name)} is cut off")
    if entry.dtype == "BF16":
        # The upper half of a float32 is the bfloat16 of the same value.
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.astype(np.float32, copy=False)


def _check_metadata(raw: object) -> None:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise InvalidAdapterError(f"{_METADATA_KEY} in the safetensors header must map text to text")


def _entry(name: str, raw: object, data_start: int) -> TensorEntry:
    if not isinstance(raw, dict) or raw.keys() != _ENTRY_KEYS:
        raise InvalidAdapterError(f"{show(name)} in the safetensors header needs dtype, shape and data_offsets only")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise InvalidAdapterError(f"{show(name)} has the unknown dtype {show(dtype)}")
    if not _is_sizes(shape) or len(shape) > _MAX_NUM_DIMS:
        raise InvalidAdapterError(f"{show(name)} has the impossible shape {show(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise InvalidAdapterError(f"{show(name)}: data_offsets {show(offsets)} do not fit its shape and dtype")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], offsets[1] - offsets[0])


def _is_sizes(raw: object) -> bool:
    if not isinstance(raw, list) or not _INTEGERS.issuperset(map(type, raw)):
        return False
    return not raw or (min(raw) >= 0 and max(raw) < _MAX_SIZE)


def _in_file_order(entries: Mapping[str, TensorEntry], data_start: int, file_bytes: int) -> dict[str, TensorEntry]:
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)))
    end = data_start
    for name, entry in ordered.items():
        if entry.start != end:
            raise InvalidAdapterError(f"the bytes of {show(name)} overlap another tensor's or leave a gap before them")
        end = entry.start + entry.num_bytes
    if end != file_bytes:
        raise InvalidAdapterError(
            f"the safetensors file has {file_bytes} bytes but its header describes {end}: it is cut off or padded"
        )
    return ordered
