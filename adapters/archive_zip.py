"""A reader of zip archives from strangers: entry by entry, bytes in chunks, memory bounded.

Our own, because the standard library's reads a directory as long as it says it is and believes entries that share their
bytes. The archive must be what one run of a packer writes: entries one after the other from the first byte, then the
directory, then its end. Encrypted entries, links, split archives, zip64 and methods but "stored" and "deflated" are
refused. Knows no adapters. Functions may be called from any thread.

Source:
    Format: https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.10.TXT, sections 4.3 and 4.4
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adapters.archive_entry import CHUNK_BYTES, MAX_NUM_ENTRIES, ArchiveEntry, plain_path
from adapters.errors import AdapterTooLargeError, InvalidAdapterError
from adapters.strict_json import show

_FILE = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_FILE_MAGIC = b"PK\x03\x04"
_ENTRY_MAGIC = b"PK\x01\x02"
_END_MAGIC = b"PK\x05\x06"
_MAX_COMMENT_BYTES = 0xFFFF
_MAX_DIRECTORY_BYTES = 256 << 10
_UNKNOWN_16, _UNKNOWN_32 = 0xFFFF, 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED_FLAGS = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW_FLAG = 1 << 3
_RAW_WINDOW_BITS = -15


@dataclass(frozen=True, slots=True)
class _DirectoryEntry:
    """What the directory says of one entry.

    Attributes:
        name: Its path, as bytes.
        method: How it is packed.
        flags: General purpose bits.
        checksum: CRC-32 of the unpacked bytes.
        packed_bytes: Length in the archive.
        size_bytes: Length unpacked.
        mode: Unix mode, 0 where the packer gave none.
        offset: Where its local header begins.
    """

    name: bytes
    method: int
    flags: int
    checksum: int
    packed_bytes: int
    size_bytes: int
    mode: int
    offset: int


def is_zip(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a zip archive."""
    return start.startswith((_FILE_MAGIC, _END_MAGIC))


def read_zip(file: BinaryIO) -> Iterator[ArchiveEntry]:
    """Give the entries of a zip archive, in the order of their bytes.

    Raises:
        InvalidAdapterError: If the archive is malformed or cut off, or holds anything but files and folders.
        AdapterTooLargeError: If it has too many entries or too long a directory.
    """
    entries, end = _read_directory(file)
    ends = [*(entry.offset for entry in entries), end][1:]
    for entry, limit in zip(entries, ends, strict=True):
        start = _check_local_header(file, entry)
        if start + entry.packed_bytes > limit:
            raise InvalidAdapterError("entries of the archive share their bytes; pack it again")
        path = plain_path(entry.name)
        is_folder = path.endswith("/")
        if is_folder and entry.size_bytes:
            raise InvalidAdapterError("the archive has a folder with bytes of its own")
        file.seek(start)
        yield ArchiveEntry(path, is_folder, entry.size_bytes, _checked(_unpack(file, entry), entry))


def _read_directory(file: BinaryIO) -> tuple[list[_DirectoryEntry], int]:
    """Return the entries, in the order of their bytes, and where these end."""
    num_entries, num_bytes, offset, end = _find_end(file)
    if num_entries > MAX_NUM_ENTRIES or num_bytes > _MAX_DIRECTORY_BYTES:
        raise AdapterTooLargeError(f"the archive has too many entries; at most {MAX_NUM_ENTRIES} are taken")
    if offset + num_bytes != end:
        raise _malformed()
    file.seek(offset)
    data = _read_exactly(file, num_bytes)
    entries = []
    position = 0
    for _ in range(num_entries):
        entry, position = _parse_entry(data, position)
        entries.append(entry)
    if position != len(data):
        raise _malformed()
    entries.sort(key=lambda entry: entry.offset)
    if (entries[0].offset if entries else offset) != 0:
        raise _malformed()
    return entries, offset


def _find_end(file: BinaryIO) -> tuple[int, int, int, int]:
    """Return the directory's number of entries, length and offset, and where its end record begins."""
    total_bytes = os.fstat(file.fileno()).st_size
    start = max(0, total_bytes - _END.size - _MAX_COMMENT_BYTES)
    file.seek(start)
    tail = _read_exactly(file, total_bytes - start)
    at = len(tail)
    while (at := tail.rfind(_END_MAGIC, 0, at)) >= 0:
        if at + _END.size > len(tail):
            continue
        _, disk, first_disk, here, num_entries, num_bytes, offset, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            continue
        if disk or first_disk or here != num_entries or num_entries == _UNKNOWN_16 or offset == _UNKNOWN_32:
            raise InvalidAdapterError("the archive is split or in the zip64 format; pack it as a plain zip, or as tar")
        return num_entries, num_bytes, offset, start + at
    raise InvalidAdapterError("the archive is cut off; send it again")


def _parse_entry(data: bytes, position: int) -> tuple[_DirectoryEntry, int]:
    """Return the directory's entry at a position, and where the next begins."""
    if position + _ENTRY.size > len(data):
        raise _malformed()
    fields = _ENTRY.unpack_from(data, position)
    magic, made_by, _, flags, method, _, _, checksum, packed_bytes, size_bytes = fields[:10]
    name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset = fields[10:]
    end = position + _ENTRY.size + name_bytes + extra_bytes + comment_bytes
    if magic != _ENTRY_MAGIC or disk or end > len(data):
        raise _malformed()
    name = data[position + _ENTRY.size : position + _ENTRY.size + name_bytes]
    mode = attributes >> 16 if made_by >> 8 in (3, 19) else 0
    entry = _DirectoryEntry(name, method, flags, checksum, packed_bytes, size_bytes, mode, offset)
    _check_entry(entry)
    return entry, end


def _check_entry(entry: _DirectoryEntry) -> None:
    shown = show(plain_path(entry.name))
    if entry.flags & _ENCRYPTED_FLAGS:
        raise InvalidAdapterError(f"the archive's {shown} is encrypted; pack it without a password")
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InvalidAdapterError(f"the archive holds a link or device, {shown}; files and folders only")
    if stat.S_ISDIR(entry.mode) and not entry.name.endswith(b"/"):
        raise _malformed()
    if entry.method not in (_STORED, _DEFLATED):
        raise InvalidAdapterError(
            f"the archive's {shown} is packed in an unusual way; pack it as a plain zip, or as tar"
        )
    if _UNKNOWN_32 in (entry.packed_bytes, entry.size_bytes, entry.offset):
        raise InvalidAdapterError("the archive is split or in the zip64 format; pack it as a plain zip, or as tar")


def _check_local_header(file: BinaryIO, entry: _DirectoryEntry) -> int:
    """Hold the entry's own header against the directory; return where the entry's bytes begin."""
    file.seek(entry.offset)
    fields = _FILE.unpack(_read_exactly(file, _FILE.size))
    magic, _, flags, method, _, _, checksum, packed_bytes, size_bytes, name_bytes, extra_bytes = fields
    name = _read_exactly(file, name_bytes)
    if magic != _FILE_MAGIC or name != entry.name or method != entry.method or flags != entry.flags:
        raise InvalidAdapterError("the archive's directory and its entries say different things; pack it again")
    # A packer that could not go back leaves zeros, one that was prepared for zip64 leaves all ones.
    stated = (checksum, packed_bytes, size_bytes)
    is_stated = not flags & _SIZES_FOLLOW_FLAG and _UNKNOWN_32 not in (packed_bytes, size_bytes)
    if is_stated and stated != (entry.checksum, entry.packed_bytes, entry.size_bytes):
        raise InvalidAdapterError("the archive's directory and its entries say different things; pack it again")
    return entry.offset + _FILE.size + int(name_bytes) + int(extra_bytes)


def _unpack(file: BinaryIO, entry: _DirectoryEntry) -> Iterator[bytes]:
    packed = _read_chunks(file, entry.packed_bytes)
    if entry.method == _STORED:
        yield from packed
        return
    inflate = zlib.decompressobj(_RAW_WINDOW_BITS)
    for chunk in packed:
        waiting = chunk
        while waiting:
            try:
                yield inflate.decompress(waiting, CHUNK_BYTES)
            except zlib.error as error:
                raise InvalidAdapterError("the archive's compressed data is damaged; send it again") from error
            waiting = inflate.unconsumed_tail
        if inflate.unused_data:
            raise _malformed()
    while rest := inflate.decompress(b"", CHUNK_BYTES):
        yield rest
    if not inflate.eof:
        raise _malformed()


def _checked(chunks: Iterator[bytes], entry: _DirectoryEntry) -> Iterator[bytes]:
    num_bytes = checksum = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        checksum = zlib.crc32(chunk, checksum)
        if num_bytes > entry.size_bytes:
            break
        yield chunk
    if (num_bytes, checksum) != (entry.size_bytes, entry.checksum):
        raise InvalidAdapterError("the archive's bytes do not match their size or checksum; send it again")


def _read_chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    left = num_bytes
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise _malformed()
        left -= len(chunk)
        yield chunk


def _read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise _malformed()
    return data


def _malformed() -> InvalidAdapterError:
    return InvalidAdapterError("the zip archive is malformed; pack it again")
