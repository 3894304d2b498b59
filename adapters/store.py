"""Adapter bytes by digest, over fsspec: a local directory, ``s3://``, ``memory://``.

A blob is a folder ``<root>/<digest>/`` of the adapter's files. On a local disk it appears by one rename, whole or not
at all. An object store has no rename, so there the marker ``.complete`` is written last and a blob without it does not
exist. Reading always checks the bytes against the digest; bytes that fail go to ``.quarantine`` and are never served.

Knows no names and no versions (``adapters.registry`` does) and does not validate adapters (``adapters.codec`` does).
Methods may be called from any thread and any number of processes; they read and write files, so never from an event
loop.
"""

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adapters.adapter_folder import adapter_files
from adapters.digest import digest_files, is_digest
from adapters.errors import AdapterError, CorruptBlobError, InvalidAdapterReferenceError, StoreError

_MARKER = ".complete"
_QUARANTINE = ".quarantine"
_TEMPORARY_PREFIX = ".tmp-"
_ABANDONED_AFTER_S = 3600.0

# Name, size and time of change of every file: equal means that nobody touched the blob since it was verified.
_Signature = tuple[tuple[str, int, int], ...]


class AdapterStore:
    """The store.

    Args:
        root_url: Where the blobs are: a path, or a URL fsspec knows.
        local_dir: Where a remote store keeps local copies; not used when ``root_url`` is local, where blobs are served
            from their place.

    Raises:
        StoreError: If the place cannot be opened or the URL's protocol is not installed.
    """

    def __init__(self, root_url: str, local_dir: Path) -> None:
        """Open the store, making its directories."""
        try:
            filesystem, root = fsspec.url_to_fs(root_url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"the store's address cannot be used: {error}") from error
        self._is_local = isinstance(filesystem, LocalFileSystem)
        self._remote = filesystem
        self._remote_root = root.rstrip("/")
        self._blobs = Path(root) if self._is_local else local_dir
        self._verified: dict[str, _Signature] = {}
        self._lock = threading.Lock()
        with _as_store_error("opened"):
            self._blobs.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._blobs)

    def put(self, folder: Path) -> str:
        """Keep the adapter in ``folder`` and return its digest; the same bytes twice are kept once.

        Only an adapter's files are taken (see :func:`adapters.adapter_folder.adapter_files`); validate them before.

        Raises:
            InvalidAdapterError: If the folder holds other files than an adapter's.
            StoreError: If the store cannot be written; nothing is left behind.
        """
        with _as_store_error("written"), self._temporary_folder() as temporary:
            for name, path in adapter_files(folder).items():
                _copy_durably(path, temporary / name)
            digest = digest_files(_files_of(temporary))
            self._publish(temporary, digest)
            if not self._is_local:
                self._upload(digest)
        return digest

    def local_path(self, digest: str) -> Path:
        """Return the local folder of a blob, verified; a remote blob is fetched first.

        A blob is hashed at its first use in this process and whenever a file's size or time of change differs since.

        Raises:
            InvalidAdapterReferenceError: If ``digest`` is not 64 lower-case hex characters.
            CorruptBlobError: If the bytes no longer match; they are in quarantine now, putting the adapter again heals.
            StoreError: If the blob is not there, or the store cannot be read.
        """
        if not is_digest(digest):
            raise InvalidAdapterReferenceError("a digest has 64 lower-case hex characters")
        path = self._blobs / digest
        with _as_store_error("read"):
            if not path.is_dir():
                self._fetch(digest)
            try:
                self._verify(path)
            except CorruptBlobError:
                if self._is_local:
                    raise
                self._fetch(digest)
        return path

    def _publish(self, temporary: Path, digest: str) -> None:
        """Give a complete folder its final name. A sound blob already there wins, a corrupt one is put away."""
        target = self._blobs / digest
        if target.is_dir():
            try:
                self._verify(target)
            except CorruptBlobError:
                pass
            else:
                return
        _sync_folder(temporary)
        try:
            temporary.rename(target)
        except OSError:
            # Another thread or process may have put the same bytes since.
            if not target.is_dir():
                raise
        _sync_folder(self._blobs)

    def _verify(self, path: Path) -> None:
        files = _files_of(path)
        signature = tuple((name, (stat := file.stat()).st_size, stat.st_mtime_ns) for name, file in files.items())
        with self._lock:
            if self._verified.get(path.name) == signature:
                return
        if digest_files(files) != path.name:
            self._quarantine(path)
            raise CorruptBlobError(
                f"the stored bytes of adapter {path.name[:12]} no longer match their digest; upload the adapter again"
            )
        with self._lock:
            self._verified[path.name] = signature

    def _quarantine(self, path: Path) -> None:
        (self._blobs / _QUARANTINE).mkdir(exist_ok=True)
        path.rename(self._blobs / _QUARANTINE / f"{path.name}-{uuid.uuid4().hex}")

    def _upload(self, digest: str) -> None:
        remote = f"{self._remote_root}/{digest}"
        if self._remote.exists(f"{remote}/{_MARKER}"):
            return
        self._remote.makedirs(remote, exist_ok=True)
        for name, path in _files_of(self._blobs / digest).items():
            self._remote.put_file(str(path), f"{remote}/{name}")
        self._remote.pipe_file(f"{remote}/{_MARKER}", b"")

    def _fetch(self, digest: str) -> None:
        remote = f"{self._remote_root}/{digest}"
        if self._is_local or not self._remote.exists(f"{remote}/{_MARKER}"):
            raise StoreError(f"adapter {digest[:12]} is not in the store; upload it again")
        with self._temporary_folder() as temporary:
            for found in self._remote.ls(remote, detail=False):
                name = str(found).rpartition("/")[2]
                if name != _MARKER:
                    self._remote.get_file(f"{remote}/{name}", str(temporary / name))
            if digest_files(_files_of(temporary)) != digest:
                self._remote.mv(
                    remote, f"{self._remote_root}/{_QUARANTINE}/{digest}-{uuid.uuid4().hex}", recursive=True
                )
                raise CorruptBlobError(
                    f"the stored bytes of adapter {digest[:12]} no longer match their digest; upload the adapter again"
                )
            self._publish(temporary, digest)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._blobs))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_store_error(done: str) -> Iterator[None]:
    try:
        yield
    except AdapterError:
        raise
    except OSError as error:
        raise StoreError(f"the store cannot be {done}: {error.strerror or type(error).__name__}") from error


def _files_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(blobs: Path) -> None:
    """Remove what a process that died left behind; young folders may belong to one that lives."""
    for folder in blobs.glob(f"{_TEMPORARY_PREFIX}*"):
        if folder.stat().st_mtime < time.time() - _ABANDONED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)
