"""A reader of tar and tar.gz archives from strangers: entry by entry, bytes in chunks, memory bounded.

Our own, because the standard library's reads headers as long as they say they are, follows what it finds in them and
takes an archive that breaks off for one that ends. Links, devices, pipes and sparse files are refused. Knows no
adapters. Functions may be called from any thread.

Source:
    Formats: POSIX.1-2017 ``pax`` (https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html), GNU tar
    (https://www.gnu.org/software/tar/manual/html_node/Standard.html), gzip (RFC 1952).
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from adapters.archive_entry import CHUNK_BYTES, MAX_NUM_ENTRIES, ArchiveEntry, plain_path
from adapters.errors import AdapterTooLargeError, InvalidAdapterError
from adapters.strict_json import show

_BLOCK_BYTES = 512
_MAX_EXTENDED_BYTES = 64 << 10
_MAX_END_BYTES = 1 << 20
_GZIP_WINDOW_BITS = 31
_GZIP_MAGIC = b"\x1f\x8b"
_POSIX_MAGIC = b"ustar\x00"
_OCTAL = re.compile(rb" *([0-7]+)[ \x00]*")
_REFUSED = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


class _Stream(Protocol):
    def read(self, num_bytes: int, /) -> bytes:
        """Return at most that many bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class _Header:
    """What one header block says.

    Attributes:
        path: The entry's path, cut to what fits the block.
        size_bytes: Length of what follows.
        kind: The type flag.
    """

    path: bytes
    size_bytes: int
    kind: bytes


def is_tar(start: bytes) -> bool:
    """Return whether a file that begins with these 512 bytes is a tar archive."""
    return len(start) == _BLOCK_BYTES and (start[257:262] == b"ustar" or _has_right_sum(start))


def is_gzip(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is compressed by gzip."""
    return start.startswith(_GZIP_MAGIC)


def read_tar(file: BinaryIO) -> Iterator[ArchiveEntry]:
    """Give the entries of a tar archive, from where the file stands.

    Raises:
        InvalidAdapterError: If the archive is malformed or cut off, or holds anything but files and folders.
        AdapterTooLargeError: If it has too many entries or too long headers.
    """
    return _read_entries(file)


def read_tar_gz(file: BinaryIO) -> Iterator[ArchiveEntry]:
    """Give the entries of a tar archive compressed by gzip, from where the file stands.

    Raises:
        InvalidAdapterError: As :func:`read_tar`, and if the compressed data is malformed or cut off.
        AdapterTooLargeError: As :func:`read_tar`.
    """
    return _read_entries(_Gunzip(file))


def _read_entries(stream: _Stream) -> Iterator[ArchiveEntry]:
    longer_path: bytes | None = None
    stated_bytes: int | None = None
    for header in _read_headers(stream):
        if header.kind in (b"x", b"g", b"L"):
            if longer_path is not None or stated_bytes is not None:
                raise InvalidAdapterError("the archive describes one entry twice")
            longer_path, stated_bytes = _read_extended(stream, header)
            continue
        if header.kind not in (b"0", b"\x00", b"5"):
            what = _REFUSED.get(header.kind, "an entry of an unknown kind")
            raise InvalidAdapterError(
                f"the archive holds {what}, {show(plain_path(header.path))}; files and folders only"
            )
        if stated_bytes not in (None, header.size_bytes):
            raise InvalidAdapterError("the archive gives one entry two sizes")
        path = plain_path(header.path if longer_path is None else longer_path)
        is_folder = header.kind == b"5" or (header.kind == b"\x00" and path.endswith("/"))
        if is_folder and header.size_bytes:
            raise InvalidAdapterError("the archive has a folder with bytes of its own")
        yield ArchiveEntry(path, is_folder, header.size_bytes, _read_chunks(stream, header.size_bytes))
        longer_path = stated_bytes = None
    if longer_path is not None or stated_bytes is not None:
        raise _cut_off()


def _read_headers(stream: _Stream) -> Iterator[_Header]:
    # Every entry may come with one extended header, and the archive with one for all.
    for _ in range(2 * MAX_NUM_ENTRIES + 2):
        block = _read_exactly(stream, _BLOCK_BYTES)
        if not any(block):
            _check_end(stream)
            return
        if not _has_right_sum(block):
            raise InvalidAdapterError("the archive has a damaged header; pack it again")
        path = block[:100].partition(b"\x00")[0]
        prefix = block[345:500].partition(b"\x00")[0] if block[257:263] == _POSIX_MAGIC else b""
        yield _Header(prefix + b"/" + path if prefix else path, _octal(block[124:136]), block[156:157])
    raise AdapterTooLargeError(f"the archive has too many entries; at most {MAX_NUM_ENTRIES} are taken")


def _read_extended(stream: _Stream, header: _Header) -> tuple[bytes | None, int | None]:
    """Return the path and the size that an extended header gives the next entry, None where it gives none."""
    if header.size_bytes > _MAX_EXTENDED_BYTES:
        raise AdapterTooLargeError(f"the archive has a header of {header.size_bytes} bytes; pack it again")
    data = b"".join(_read_chunks(stream, header.size_bytes))
    if header.kind == b"L":
        return data.rstrip(b"\x00"), None
    records = _pax_records(data)
    if any(key.startswith((b"GNU.sparse", b"SCHILY.realsize")) for key in records):
        raise InvalidAdapterError("the archive holds a sparse file; files and folders only")
    if b"linkpath" in records or (header.kind == b"g" and records.keys() & {b"path", b"size"}):
        raise InvalidAdapterError("the archive's headers do more than name files; pack it again")
    size = records.get(b"size")
    if size is not None and not re.fullmatch(rb"[0-9]{1,18}", size):
        raise InvalidAdapterError("the archive has a malformed header; pack it again")
    return records.get(b"path"), None if size is None else int(size)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header: length, key, value, each ended by a new line."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        length = re.match(rb"([0-9]{1,6}) ", data[start : start + 7])
        end = start + int(length[1]) if length else 0
        key, equals, value = data[start + len(length[0]) : end].partition(b"=") if length else (b"", b"", b"")
        if not equals or not value.endswith(b"\n") or end > len(data) or key in records:
            raise InvalidAdapterError("the archive has a malformed header; pack it again")
        records[key] = value[:-1]
        start = end
    return records


def _read_chunks(stream: _Stream, num_bytes: int) -> Iterator[bytes]:
    left = num_bytes
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise _cut_off()
        left -= len(chunk)
        yield chunk
    _read_exactly(stream, -num_bytes % _BLOCK_BYTES)


def _read_exactly(stream: _Stream, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        chunk = stream.read(num_bytes - len(data))
        if not chunk:
            raise _cut_off()
        data += chunk
    return data


def _check_end(stream: _Stream) -> None:
    """After the first block of zeros only more zeros may follow, not many, to the very end of the stream."""
    num_bytes = 0
    while chunk := stream.read(CHUNK_BYTES):
        num_bytes += len(chunk)
        if any(chunk) or num_bytes > _MAX_END_BYTES:
            raise InvalidAdapterError("the archive goes on after its end; pack it again")


def _has_right_sum(block: bytes) -> bool:
    stated = _OCTAL.fullmatch(block[148:156])
    return stated is not None and int(stated[1], 8) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _octal(field: bytes) -> int:
    number = _OCTAL.fullmatch(field)
    if number is None:
        raise InvalidAdapterError("the archive has a malformed header; pack it again")
    return int(number[1], 8)


def _cut_off() -> InvalidAdapterError:
    return InvalidAdapterError("the archive is cut off; send it again")


class _Gunzip:
    """The unpacked bytes of a gzip file, checked against its sums, never more in memory than was asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP_WINDOW_BITS)
        self._waiting = b""

    def read(self, num_bytes: int, /) -> bytes:
        """Return at most that many bytes; none at the end.

        Raises:
            InvalidAdapterError: If the data is malformed, cut off, or followed by something else.
        """
        while True:
            packed = self._waiting or self._file.read(CHUNK_BYTES)
            if not packed and self._inflate.eof:
                return b""
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(_GZIP_WINDOW_BITS)  # gzip files may be joined to one
            try:
                unpacked = self._inflate.decompress(packed, num_bytes)
            except zlib.error as error:
                raise InvalidAdapterError("the archive's compressed data is damaged; send it again") from error
            self._waiting = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if unpacked:
                return unpacked
            if not packed:
                raise _cut_off()
