"""Where an upload's files lie while they arrive: one temporary folder each, gone whatever happens.

Event loop's thread only; disk work runs in threads, one piece of work of an upload at a time.
"""

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from adapters.adapter_folder import WEIGHTS_FILE, check_file_name
from adapters.archive import unpack_archive
from adapters.codec import CodecLimits
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, StoreError
from adapters.registry import VersionRecord
from server.core.principal import Principal

T = TypeVar("T")

_ARCHIVE = "archive"
# For what an archive holds beside the weights: its own headers and the texts.
_ARCHIVE_SLACK_BYTES = 4 << 20


class StagedUpload:
    """One upload on its way: an adapter's files, or one archive of them.

    Args:
        root: A folder of its own, made by :meth:`open`.
        principal: Who uploads.
        record: The version it is to become.
        clock: Ends it when it takes too long.
        limits: How large the files may be.
        pool: Where disk work runs.

    Attributes:
        folder: Where the adapter's files are, once it is finished.
        committed: Whether it became a version.
    """

    def __init__(
        self,
        root: Path,
        *,
        principal: Principal,
        record: VersionRecord,
        clock: asyncio.Timeout,
        limits: CodecLimits,
        pool: Executor,
    ) -> None:
        """Start without files."""
        self.principal = principal
        self.record = record
        self.clock = clock
        self.committed = False
        self.folder = root / "files"
        self._root = root
        self._archive = root / _ARCHIVE
        self._limits = limits
        self._pool = pool
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}
        self._working: asyncio.Future[Any] | None = None

    async def open(self) -> None:
        """Make the folder.

        Raises:
            StoreError: If the disk cannot be written.
        """
        await self.run(partial(self.folder.mkdir, parents=True))

    async def write(self, file_name: str, data: bytes) -> None:
        """Append to one file of the upload; the first bytes create it.

        Raises:
            InvalidAdapterError: If an adapter has no such file, or an archive was begun; nothing is written then.
            AdapterTooLargeError: If the file grows over its limit.
            StoreError: If the disk cannot be written.
        """
        check_file_name(file_name)
        limit = self._limits.max_file_bytes if file_name == WEIGHTS_FILE else self._limits.max_text_bytes
        await self._append(self.folder / file_name, data, limit)

    async def write_archive(self, data: bytes) -> None:
        """Append to the upload's archive; what is in it is looked at when it is whole.

        Raises:
            InvalidAdapterError: If files were begun.
            AdapterTooLargeError: If it grows over the limit.
            StoreError: If the disk cannot be written.
        """
        await self._append(self._archive, data, self._limits.max_file_bytes + _ARCHIVE_SLACK_BYTES)

    async def finish(self) -> None:
        """Close what was written, and unpack an archive; nothing can be written after.

        Raises:
            AdapterError: If the archive is not one of an adapter's files, or the disk cannot be written.
        """
        await self.run(self._close)
        if _ARCHIVE in self._files:
            await self.run(
                partial(
                    unpack_archive,
                    self._archive,
                    self.folder,
                    max_file_bytes=self._limits.max_file_bytes,
                    max_text_bytes=self._limits.max_text_bytes,
                )
            )

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work on the upload; when the caller is cancelled it ends before the folder is removed.

        Raises:
            StoreError: If the disk cannot be read or written.
        """
        working = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._working = working
        try:
            return await asyncio.shield(working)
        except OSError as error:
            raise StoreError(f"the upload cannot be kept: {error.strerror or type(error).__name__}") from error

    async def remove(self) -> None:
        """Remove the folder and all in it, as soon as nothing works on it any more."""
        if self._working is not None:
            await asyncio.wait({self._working})
            if not self._working.cancelled():
                self._working.exception()  # seen, also when the caller was cancelled
        await asyncio.get_running_loop().run_in_executor(self._pool, self._remove)

    async def _append(self, path: Path, data: bytes, limit: int) -> None:
        if self._files and (path.name == _ARCHIVE) != (_ARCHIVE in self._files):
            raise InvalidAdapterError("an upload is an adapter's files or one archive of them, not both")
        size_bytes = self._sizes.get(path.name, 0) + len(data)
        if size_bytes > limit:
            raise AdapterTooLargeError(f"{path.name} has more than {limit} bytes")
        self._sizes[path.name] = size_bytes
        await self.run(partial(self._write, path, data))

    def _write(self, path: Path, data: bytes) -> None:
        if path.name not in self._files:
            self._files[path.name] = path.open("xb")
        self._files[path.name].write(data)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # a full disk; what was to be written is not wanted any more
            self._close()
        shutil.rmtree(self._root, ignore_errors=True)


class StagingArea:
    """The folder that holds the temporary folders. One server uses it at a time.

    Args:
        root: The folder; made if need be.
    """

    def __init__(self, root: Path) -> None:
        """Keep the place."""
        self._root = root

    async def clear(self) -> None:
        """Remove what a crash left behind; call before the first upload."""
        await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)

    def place(self) -> Path:
        """Return where a new folder may be made."""
        return self._root / uuid.uuid4().hex
