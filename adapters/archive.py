"""A PEFT folder out of a tar, tar.gz or zip archive from a stranger.

What an archive is, its bytes tell, not its name. Nothing in it chooses where bytes go: a file is taken only under one
of an adapter's own names, and lands flat in the given folder. The files are at the archive's top or in one folder of
it, as with a folder that PEFT wrote (see :func:`adapters.adapter_folder.adapter_files`). What a Mac adds on its own
(``__MACOSX/``, ``._*``, ``.DS_Store``) is passed over; everything else that is no adapter's file is refused.

Entries are unpacked one after the other, in small chunks, and counted meanwhile. Knows no formats within the files
(``adapters.codec`` does). Functions may be called from any thread; they read and write files, so never from an event
loop.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adapters.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, check_file_name
from adapters.archive_entry import MAX_NUM_ENTRIES, ArchiveEntry
from adapters.archive_tar import is_gzip, is_tar, read_tar, read_tar_gz
from adapters.archive_zip import is_zip, read_zip
from adapters.errors import AdapterTooLargeError, InvalidAdapterError
from adapters.safetensors_file import open_regular
from adapters.staging_folder import emptied_on_error
from adapters.strict_json import show

_START_BYTES = 512
_MAX_PATH_CHARS = 512
_SEGMENT = re.compile(r"[^\x00-\x1f\x7f\\:/]+")
_MAC_FOLDER = "__MACOSX"
_MAC_PREFIX = "._"
_MAC_FILE = ".DS_Store"
# Zeros pack a thousandfold; trained weights hardly at all.
_MAX_RATIO = 100
_RATIO_FREE_BYTES = 16 << 20


def unpack_archive(archive: Path, into: Path, *, max_file_bytes: int, max_text_bytes: int) -> None:
    """Unpack an adapter's files into an empty folder; on any error the folder is empty again.

    Whether all files are there is for :func:`adapters.adapter_folder.adapter_files` to say.

    Args:
        archive: A tar, tar.gz or zip file.
        into: Where to; must be there.
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.

    Raises:
        InvalidAdapterError: If it is no such archive, is damaged or cut off, or holds other things than an adapter.
        UnsupportedAdapterError: If it holds a file that could run code.
        AdapterTooLargeError: If a file is over its limit, there are too many, or they unpack to far too much.
        OSError: If the archive cannot be read or ``into`` not written.
    """
    with emptied_on_error(into), open_regular(archive) as file:
        unpacking = _Unpacking(into, max_file_bytes, max_text_bytes, os.fstat(file.fileno()).st_size)
        for number, entry in enumerate(_entries(file)):
            if number >= MAX_NUM_ENTRIES:
                raise AdapterTooLargeError(f"the archive has too many entries; at most {MAX_NUM_ENTRIES} are taken")
            unpacking.take(entry)
        unpacking.check_whole()


def _entries(file: BinaryIO) -> Iterator[ArchiveEntry]:
    start = file.read(_START_BYTES)
    file.seek(0)
    if is_zip(start):
        return read_zip(file)
    if is_gzip(start):
        return read_tar_gz(file)
    if is_tar(start):
        return read_tar(file)
    raise InvalidAdapterError("the file is no tar, tar.gz or zip archive; pack the adapter's folder as one of these")


class _Unpacking:
    """One archive on its way into a folder: what came so far, and how much.

    Args:
        into: Where the files go.
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.
        packed_bytes: Length of the archive.
    """

    def __init__(self, into: Path, max_file_bytes: int, max_text_bytes: int, packed_bytes: int) -> None:
        self._into = into
        self._max_file_bytes = max_file_bytes
        self._max_text_bytes = max_text_bytes
        self._max_total_bytes = max(_RATIO_FREE_BYTES, _MAX_RATIO * packed_bytes)
        self._total_bytes = 0
        self._folders: dict[str, str] = {}  # file → the folder of the archive it came from, "" for its top

    def take(self, entry: ArchiveEntry) -> None:
        """Unpack one entry, or pass it over.

        Raises:
            AdapterError: As :func:`unpack_archive`.
        """
        *folders, name = parts = _split(entry.path) or [""]
        if parts[0] == _MAC_FOLDER or name == _MAC_FILE or name.startswith(_MAC_PREFIX):
            for _ in self._counted(entry, "what a Mac added", self._max_text_bytes):
                pass
        elif not entry.is_folder:
            self._write(entry, folders, name)
        elif folders:
            raise _nested()

    def check_whole(self) -> None:
        """Refuse an archive of several adapters.

        Raises:
            InvalidAdapterError: If weights and config are not of one folder.
        """
        places = {self._folders[name] for name in (CONFIG_FILE, WEIGHTS_FILE) if name in self._folders}
        folders = {folder for folder in self._folders.values() if folder}
        if len(places) > 1 or len(folders) > 1 or (folders and places == {""}):
            raise InvalidAdapterError("the archive holds more than one folder of files; pack one adapter's folder")

    def _write(self, entry: ArchiveEntry, folders: list[str], name: str) -> None:
        if len(folders) > 1:
            raise _nested()
        check_file_name(name)
        if name in self._folders:
            raise InvalidAdapterError(f"the archive holds {name} twice")
        self._folders[name] = "/".join(folders)
        limit = self._max_file_bytes if name == WEIGHTS_FILE else self._max_text_bytes
        with (self._into / name).open("xb") as file:
            for chunk in self._counted(entry, name, limit):
                file.write(chunk)

    def _counted(self, entry: ArchiveEntry, name: str, limit: int) -> Iterator[bytes]:
        if entry.size_bytes > limit:
            raise AdapterTooLargeError(f"{name} has {entry.size_bytes} bytes; at most {limit} are taken")
        for chunk in entry.chunks:
            self._total_bytes += len(chunk)
            if self._total_bytes > self._max_total_bytes:
                raise AdapterTooLargeError("the archive unpacks to more than a hundred times its size; send the files")
            yield chunk


def _split(path: str) -> list[str]:
    """Return the segments of an entry's path; none for the archive's top."""
    # "./" is how tar names what lies in the folder it was started in.
    plain = path.removeprefix("./").removesuffix("/")
    if plain in ("", ".") and path in (".", "./"):
        return []
    segments = plain.split("/")
    bad = any(segment in (".", "..") or _SEGMENT.fullmatch(segment) is None for segment in segments)
    if bad or len(path) > _MAX_PATH_CHARS:
        raise InvalidAdapterError(f"the archive holds the path {show(path)}; plain names in one folder only")
    return segments


def _nested() -> InvalidAdapterError:
    return InvalidAdapterError("the archive is nested too deep; pack the folder that holds " + CONFIG_FILE)
