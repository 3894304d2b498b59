"""What a reader of archives hands on: one entry after the other, its bytes in chunks.

Knows no archive format and no adapter. Functions may be called from any thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from adapters.errors import InvalidAdapterError

CHUNK_BYTES = 1 << 16
MAX_NUM_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file or folder in an archive.

    Attributes:
        path: As the archive has it, ASCII; nothing else about it was checked. Folders end with a slash or not.
        is_folder: Whether it is a folder; everything else here is a regular file.
        size_bytes: How many bytes ``chunks`` gives; a reader raises if they turn out to be more or fewer.
        chunks: Its bytes, to be taken to their end before the next entry is asked for.
    """

    path: str
    is_folder: bool
    size_bytes: int
    chunks: Iterator[bytes]


def plain_path(path: bytes) -> str:
    """Return an entry's path as text.

    Raises:
        InvalidAdapterError: If it is not ASCII.
    """
    try:
        return path.decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidAdapterError("the archive has a name that is not plain ASCII; rename and pack it again") from error
