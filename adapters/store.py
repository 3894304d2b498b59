"""Adapter bytes by digest: a local directory, or an object store (``s3://``, ``hf://``, ``memory://``) with copies.

Put is atomic, every read is verified against the digest, corrupt bytes are put away and never served: a corrupt local
copy is fetched again, a corrupt blob of the store itself is reported. Local blobs are served from their place; copies
of a remote store are kept under a limit, the least recently used go first and are fetched again when needed. A hub
(``hf://owner/repo/folder``) makes a commit of every file put: good for tens of adapters a day, not for thousands.

Knows no names and no versions (``adapters.registry`` does) and does not validate adapters (``adapters.codec`` does).
Methods may be called from any thread and any number of processes; all but ``pin``, ``unpin`` and ``verified_path``
read and write files, so never from an event loop.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from adapters.adapter_folder import ALLOWED_FILES, WEIGHTS_FILE, adapter_files
from adapters.digest import digest_files, is_digest
from adapters.errors import (
    AdapterError,
    AdapterNotFoundError,
    CorruptBlobError,
    InvalidAdapterReferenceError,
    StoreError,
)
from adapters.object_stores import connect
from adapters.safetensors_file import open_regular
from adapters.store_cache import LocalBlobs, files_of
from adapters.store_remote import RemoteBlobs

_MAX_FETCH_ATTEMPTS = 2


class AdapterStore:
    """The store.

    Args:
        root_url: Where the blobs are: a path, or a URL fsspec knows.
        local_dir: Where a remote store keeps local copies, of this server alone; not used when ``root_url`` is local.
        max_local_bytes: How much the local copies of a remote store may take.
        options: What fsspec needs to reach a remote store: ``endpoint_url``, keys, ``token``.

    Raises:
        StoreError: If the place cannot be opened or the URL's protocol is not installed.
    """

    def __init__(
        self,
        root_url: str,
        local_dir: Path,
        *,
        max_local_bytes: int = 10 << 30,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Open the store, making its directories."""
        with _as_store_error("opened"):
            filesystem, root = _connect(root_url, options or {})
            if isinstance(filesystem, LocalFileSystem):
                self._remote = None
                self._local = LocalBlobs(Path(root), max_bytes=None)
            else:
                self._remote = RemoteBlobs(root_url, options or {})
                self._local = LocalBlobs(local_dir, max_bytes=max_local_bytes)

    def put(self, folder: Path) -> str:
        """Keep the adapter in ``folder`` and return its digest; the same bytes twice are kept once, and count as new.

        Only an adapter's files are taken (see :func:`adapters.adapter_folder.adapter_files`); validate them before.

        Raises:
            InvalidAdapterError: If the folder holds other files than an adapter's.
            StoreError: If the store cannot be written; the blob is then whole or not there, never half.
        """
        with _as_store_error("written"):
            files = adapter_files(folder)
            size_bytes = sum(path.stat().st_size for path in files.values())
            with self._local.room_for(size_bytes), self._local.temporary() as temporary:
                for name, path in files.items():
                    _copy(path, temporary / name)
                digest = digest_files(files_of(temporary))
                if self._remote is not None:
                    self._remote.put(digest, files_of(temporary))
                self._local.publish(temporary, digest)
        return digest

    def keep(self, folder: Path, digest: str) -> None:
        """Make sure that the adapter in ``folder``, put before, is there still, now that a version needs it.

        A sweep may have taken it between the two: where the clock was set ahead, what was just put looks old. A sweep
        asks for what is needed once nobody else may change the blob, so what is there now stays.

        Raises:
            StoreError: If the store cannot be read or written.
        """
        with _as_store_error("read"):
            is_there = (self._remote or self._local).is_there(digest)
        if not is_there:
            self.put(folder)

    def pin(self, digest: str) -> None:
        """Keep the local copy, there or yet to come, from being evicted or swept by this process; counted. No I/O."""
        self._local.pin(digest)

    def unpin(self, digest: str) -> None:
        """Take one pin back. No I/O."""
        self._local.unpin(digest)

    def verified_path(self, digest: str) -> Path | None:
        """Return the local folder of a blob verified earlier, from memory alone; None: ask :meth:`local_path`. No I/O.

        Of a blob pinned before, the folder stays until it is unpinned.
        """
        return self._local.known(digest)

    def local_path(self, digest: str) -> Path:
        """Return the local folder of a blob, verified; a remote blob is fetched first, once for all who wait for it.

        Pin the blob before, else its copy may be evicted as soon as this returns.

        Raises:
            InvalidAdapterReferenceError: If ``digest`` is not 64 lower-case hex characters.
            CorruptBlobError: If the bytes no longer match; they are in quarantine now, putting the adapter again heals.
            StoreError: If the blob is not there, or the store cannot be read.
        """
        if not is_digest(digest):
            raise InvalidAdapterReferenceError("a digest has 64 lower-case hex characters")
        with _as_store_error("read"), self._local.alone(digest):
            try:
                path = self._local.find(digest)
            except CorruptBlobError:
                if self._remote is None:
                    raise
                path = None
            if path is None:
                path = self._fetch(digest)
            return path

    def read_file(self, digest: str, name: str) -> bytes:
        """Return one of a blob's small files, ``card.md`` for instance, verified.

        Raises:
            AdapterNotFoundError: If the adapter has no such file.
            AdapterError: As :meth:`local_path`.
        """
        self.pin(digest)
        try:
            path = self.local_path(digest)
            with _as_store_error("read"):
                if name not in ALLOWED_FILES - {WEIGHTS_FILE} or not (path / name).is_file():
                    raise AdapterNotFoundError(f"the adapter has no {name}")
                return (path / name).read_bytes()
        finally:
            self.unpin(digest)

    def sweep(self, live: Callable[[], frozenset[str]], *, older_than_s: float) -> tuple[str, ...]:
        """Remove what no version needs; return the digests of the blobs that are gone.

        Blobs, whole or half uploaded, and what processes that died left on their way go when they are older than
        ``older_than_s``; a blob put again is young again. What is pinned here stays.

        Args:
            live: Returns the digests that are needed; asked after the blobs were listed, and again before each removal.
            older_than_s: Must be longer than an upload takes from its first byte to its name.

        Raises:
            StoreError: If the store cannot be read or written.
        """
        with _as_store_error("swept"):
            removed = self._local.sweep(live, older_than_s)
            return removed if self._remote is None else self._remote.sweep(live, older_than_s)

    def _fetch(self, digest: str) -> Path:
        if self._remote is None:
            raise StoreError(f"adapter {digest[:12]} is not in the store; upload it again")
        stamp = ""
        # Once more before the store is blamed: the bytes may have been spoilt on their way.
        for _ in range(_MAX_FETCH_ATTEMPTS):
            with self._local.room_for(self._remote.size_bytes(digest)), self._local.temporary() as temporary:
                stamp = self._remote.fetch(digest, temporary)
                if digest_files(files_of(temporary)) == digest:
                    return self._local.publish(temporary, digest)
        self._remote.quarantine(digest, stamp)
        raise CorruptBlobError(
            f"the stored bytes of adapter {digest[:12]} no longer match their digest; upload the adapter again"
        )


def _connect(url: str, options: Mapping[str, object]) -> tuple[object, str]:
    try:
        return connect(url, options)
    except (ImportError, TypeError, ValueError) as error:
        raise StoreError(f"the store's address or options cannot be used: {type(error).__name__}") from error


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


@contextmanager
def _as_store_error(done: str) -> Iterator[None]:
    try:
        yield
    except AdapterError:
        raise
    except OSError as error:
        raise StoreError(f"the store cannot be {done}: {error.strerror or type(error).__name__}") from error
