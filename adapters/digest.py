"""The content address of an adapter: one SHA-256 over the names and bytes of its files.

Knows no formats and no store. Every function may be called from any thread.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from adapters.errors import StoreError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


def digest_files(files: Mapping[str, Path]) -> str:
    """Return the content address of a set of files as 64 hex characters.

    The hash runs over every file in the order of its name: length of the name, name (UTF-8), length of the bytes,
    bytes; lengths are 8 bytes, little-endian, so that no two different sets of files share one stream.

    Args:
        files: File name → where its bytes are. The name counts, the place does not.

    Raises:
        OSError: If a file cannot be read.
        StoreError: If a file changes its length while it is read.
    """
    total = hashlib.sha256()
    for name in sorted(files):
        encoded = name.encode()
        size_bytes = files[name].stat().st_size
        total.update(len(encoded).to_bytes(8, "little") + encoded + size_bytes.to_bytes(8, "little"))
        if _feed(total, files[name]) != size_bytes:
            raise StoreError(f"{name} changed while it was read; try again")
    return total.hexdigest()


def digest_bytes_of(path: Path) -> str:
    """Return the plain SHA-256 of one file, as ``sha256sum`` prints it.

    Raises:
        OSError: If the file cannot be read.
    """
    total = hashlib.sha256()
    _feed(total, path)
    return total.hexdigest()


def is_digest(text: str) -> bool:
    """Return whether ``text`` has the form of a digest: 64 lower-case hex characters, nothing that can name a path."""
    return _DIGEST.fullmatch(text) is not None


def _feed(total: "hashlib._Hash", path: Path) -> int:
    num_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
            num_bytes += len(chunk)
    return num_bytes
