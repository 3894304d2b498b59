"""Blobs in an object store, over fsspec: ``s3://``, ``hf://``, ``memory://``, shared by many servers.

A blob is the folder ``<root>/<digest>/``. An object store has no rename, so the marker ``.complete`` is written last
and taken away first: a folder without it is no blob. Its content is new at every put, its time is the blob's age.

Whoever removes a blob first announces it by a file ``.removing-…``, then looks at the marker once more; whoever puts
a blob first writes the marker, then looks for announcements, and starts again when the removal is over. One of the two
therefore always sees the other (the store must show every write to the next read, as S3 and the hub do), so that
a sweep never takes what another server has just put.

Knows no names, no versions and no local copies, and verifies nothing. Methods may be called from any thread; all of
them wait for the network.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fsspec import AbstractFileSystem

from adapters.adapter_folder import ALLOWED_FILES
from adapters.digest import is_digest
from adapters.errors import AdapterError, StoreError
from adapters.object_stores import connect

_MARKER = ".complete"
_REMOVAL_PREFIX = ".removing-"
_QUARANTINE = ".quarantine"
_QUARANTINED_FOR_S = 7 * 86400.0
_REMOVAL_WAIT_S = 30.0
_REMOVAL_POLL_S = 0.2
_REMOVAL_DEAD_AFTER_S = 600.0
_MAX_PUT_ATTEMPTS = 3


class RemoteBlobs:
    """Blobs in an object store.

    Args:
        url: Where they are.
        options: What fsspec needs to get there: end point, keys, token.

    Raises:
        StoreError: If the URL's protocol is not known or not installed.
    """

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        """Look at the address; the network is not asked before the first use."""
        self._url = url
        self._options = dict(options)
        self._of_thread = threading.local()
        self._root = connect(url, options)[1].rstrip("/")

    def put(self, digest: str, files: Mapping[str, Path]) -> None:
        """Keep a blob. One that is there already is not sent again, but counts as put now.

        Raises:
            StoreError: If the store cannot be written; the blob is then either whole or not there.
        """
        with _as_store_error("written"):
            filesystem = self._filesystem()
            sizes = {name: path.stat().st_size for name, path in files.items()}
            for _ in range(_MAX_PUT_ATTEMPTS):
                found = self._wait_for_removals(filesystem, digest)
                for name, path in files.items():
                    if _MARKER not in found or found.get(name) != sizes[name]:
                        filesystem.put_file(str(path), self._path(digest, name))
                filesystem.pipe_file(self._path(digest, _MARKER), uuid.uuid4().hex.encode())
                found = self._list(filesystem, digest)
                if _MARKER in found and not _removals(found) and sizes.items() <= found.items():
                    return
            raise _being_removed()

    def is_there(self, digest: str) -> bool:
        """Return whether a blob is there, once nobody removes it any more.

        Raises:
            StoreError: If the store cannot be read.
        """
        with _as_store_error("read"):
            return _MARKER in self._wait_for_removals(self._filesystem(), digest)

    def size_bytes(self, digest: str) -> int:
        """Return how many bytes a blob has.

        Raises:
            StoreError: If it is not there, or the store cannot be read.
        """
        with _as_store_error("read"):
            found = self._list(self._filesystem(), digest)
            if _MARKER not in found:
                raise _not_there(digest)
            return sum(found[name] for name in ALLOWED_FILES & found.keys())

    def fetch(self, digest: str, into: Path) -> str:
        """Fetch a blob's files, unverified, into a folder; return the stamp that :meth:`quarantine` asks for.

        Raises:
            StoreError: If it is not there, or the store cannot be read.
        """
        with _as_store_error("read"):
            filesystem = self._filesystem()
            stamp = self._stamp(filesystem, digest)
            if stamp is None:
                raise _not_there(digest)
            # Only an adapter's own names: the store is shared, and a name of another's choice could lead anywhere.
            for name in ALLOWED_FILES & self._list(filesystem, digest).keys():
                filesystem.get_file(self._path(digest, name), str(into / name))
            return stamp

    def quarantine(self, digest: str, stamp: str) -> None:
        """Put a blob away, unless it was put again since ``stamp``.

        Raises:
            StoreError: If the store cannot be written.
        """
        with _as_store_error("written"):
            self._remove(self._filesystem(), digest, stamp, keep_as=f"{_QUARANTINE}/{digest}-{uuid.uuid4().hex}")

    def sweep(self, live: Callable[[], frozenset[str]], older_than_s: float) -> tuple[str, ...]:
        """Remove blobs, whole or not, that no name needs and that were put longer ago; return their digests.

        Goes with it: what is in quarantine for a week. A blob that cannot be removed does not keep the others.

        Args:
            live: Returns the digests that are needed; asked after the blobs were listed, and again before each removal.
            older_than_s: Age from which a blob is taken.

        Raises:
            StoreError: If the store cannot be read, or a blob not removed.
        """
        removed: list[str] = []
        failures: list[StoreError] = []
        with _as_store_error("swept"):
            filesystem = self._filesystem()
            found = [name for name in self._list(filesystem, "") if is_digest(name)]
            needed = live()
        for digest in found:
            try:
                with _as_store_error("swept"):
                    if digest not in needed and self._sweep_blob(filesystem, digest, live, older_than_s):
                        removed.append(digest)
            except StoreError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        with _as_store_error("swept"):
            self._sweep_quarantine(filesystem)
        return tuple(removed)

    def _filesystem(self) -> AbstractFileSystem:
        """This thread's own connection: the hub's client may not be shared between threads."""
        filesystem = getattr(self._of_thread, "filesystem", None)
        if filesystem is None:
            filesystem, _ = connect(self._url, self._options)
            self._of_thread.filesystem = filesystem
        return filesystem

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts)).rstrip("/")

    def _list(self, filesystem: AbstractFileSystem, folder: str) -> dict[str, int]:
        """Name → bytes of what is in a folder; nothing if it is not there."""
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        names = {str(entry["name"]).rstrip("/").rpartition("/")[2]: int(entry["size"] or 0) for entry in found}
        return {name: size_bytes for name, size_bytes in names.items() if name not in ("", ".", "..")}

    def _stamp(self, filesystem: AbstractFileSystem, digest: str) -> str | None:
        filesystem.invalidate_cache()
        try:
            return bytes(filesystem.cat_file(self._path(digest, _MARKER))).decode("ascii", "replace")
        except FileNotFoundError:
            return None

    def _age_s(self, filesystem: AbstractFileSystem, *parts: str) -> float:
        modified = filesystem.modified(self._path(*parts))
        return float((datetime.now(UTC) - modified.astimezone(UTC)).total_seconds())

    def _wait_for_removals(self, filesystem: AbstractFileSystem, digest: str) -> dict[str, int]:
        """Return what is there of a blob once nobody removes it any more."""
        until_s = time.monotonic() + _REMOVAL_WAIT_S
        while removals := _removals(found := self._list(filesystem, digest)):
            if self._drop_dead_removals(filesystem, digest, removals) == len(removals):
                continue
            if time.monotonic() > until_s:
                raise _being_removed()
            time.sleep(_REMOVAL_POLL_S)
        return found

    def _drop_dead_removals(self, filesystem: AbstractFileSystem, digest: str, removals: list[str]) -> int:
        """Withdraw what a server that died has announced; return how many."""
        num_dropped = 0
        for name in removals:
            with suppress(FileNotFoundError):  # it was withdrawn meanwhile
                if self._age_s(filesystem, digest, name) >= _REMOVAL_DEAD_AFTER_S:
                    filesystem.rm_file(self._path(digest, name))
                    num_dropped += 1
        return num_dropped

    def _sweep_blob(
        self, filesystem: AbstractFileSystem, digest: str, live: Callable[[], frozenset[str]], older_than_s: float
    ) -> bool:
        found = self._list(filesystem, digest)
        stamp = self._stamp(filesystem, digest)
        dated = [_MARKER] if stamp is not None else list(found)
        try:
            is_young = any(self._age_s(filesystem, digest, name) < older_than_s for name in dated)
        except FileNotFoundError:  # another server removes it now
            return False
        return (
            bool(found) and not is_young and self._remove(filesystem, digest, stamp, is_needed=lambda: digest in live())
        )

    def _remove(
        self,
        filesystem: AbstractFileSystem,
        digest: str,
        stamp: str | None,
        *,
        keep_as: str | None = None,
        is_needed: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Remove a blob, or move it to ``keep_as``, unless its marker is another than ``stamp`` or it is needed."""
        removal = self._path(digest, _REMOVAL_PREFIX + uuid.uuid4().hex)
        filesystem.pipe_file(removal, b"by a server of Medley")
        try:
            # Once the removal is announced: whoever needs the blob from now on sees that.
            if self._stamp(filesystem, digest) != stamp or is_needed():
                return False
            found = self._list(filesystem, digest)
            self._drop_dead_removals(filesystem, digest, _removals(found))
            first = [_MARKER] if stamp is not None else []
            for name in (*first, *(found.keys() - {_MARKER, *_removals(found)})):
                with suppress(FileNotFoundError):  # another server removes the same
                    if keep_as and name != _MARKER:
                        filesystem.cp_file(self._path(digest, name), self._path(keep_as, name))
                    filesystem.rm_file(self._path(digest, name))
            return True
        finally:
            with suppress(FileNotFoundError):
                filesystem.rm_file(removal)

    def _sweep_quarantine(self, filesystem: AbstractFileSystem) -> None:
        for blob in self._list(filesystem, _QUARANTINE):
            for name in self._list(filesystem, f"{_QUARANTINE}/{blob}"):
                if self._age_s(filesystem, _QUARANTINE, blob, name) >= _QUARANTINED_FOR_S:
                    filesystem.rm_file(self._path(_QUARANTINE, blob, name))


def _removals(found: Mapping[str, int]) -> list[str]:
    return [name for name in found if name.startswith(_REMOVAL_PREFIX)]


def _being_removed() -> StoreError:
    return StoreError("the adapter is being removed from the store by another server; try again")


def _not_there(digest: str) -> StoreError:
    return StoreError(f"adapter {digest[:12]} is not in the store; upload it again")


@contextmanager
def _as_store_error(done: str) -> Iterator[None]:
    """Turn whatever a file system's driver raises into our error, without its text: that may hold keys."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:  # drivers raise the errors of their own HTTP libraries, which have no common base
        raise StoreError(f"the store cannot be {done}: {type(error).__name__}; is it up and allowed?") from error
