"""Where an upload's files lie while they arrive: one temporary folder each, gone whatever happens.

Event loop's thread only; disk work runs in threads.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from adapters.adapter_folder import WEIGHTS_FILE, check_file_name
from adapters.codec import CodecLimits
from adapters.errors import AdapterTooLargeError


class StagedUpload:
    """The files of one upload.

    Args:
        folder: An empty folder of its own.
        limits: How large the files may be.
    """

    def __init__(self, folder: Path, limits: CodecLimits) -> None:
        """Start without files."""
        self.folder = folder
        self.committed = False
        self._limits = limits
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}

    async def write(self, file_name: str, data: bytes) -> None:
        """Append to one file of the upload; the first bytes create it.

        Raises:
            InvalidAdapterError: If an adapter has no such file; nothing is ever written under another name.
            AdapterTooLargeError: If the file grows over its limit.
        """
        check_file_name(file_name)
        limit = self._limits.max_file_bytes if file_name == WEIGHTS_FILE else self._limits.max_text_bytes
        self._sizes[file_name] = self._sizes.get(file_name, 0) + len(data)
        if self._sizes[file_name] > limit:
            raise AdapterTooLargeError(f"{file_name} has more than {limit} bytes")
        await asyncio.to_thread(self._append, file_name, data)

    def close(self) -> None:
        """Close the files, so that what was written can be read; nothing can be written after."""
        for file in self._files.values():
            file.close()

    def _append(self, file_name: str, data: bytes) -> None:
        if file_name not in self._files:
            self._files[file_name] = (self.folder / file_name).open("xb")
        self._files[file_name].write(data)


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

    async def make(self) -> Path:
        """Return a new empty folder."""
        return Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._root))

    async def remove(self, folder: Path) -> None:
        """Remove a folder and all in it, also when the caller is cancelled meanwhile."""
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
