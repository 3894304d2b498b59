"""Blobs on this machine's disk: whole or not there, verified, pinned while in use, the least used given up first.

A blob is the folder ``<folder>/<digest>/``. It appears by one rename after everything in it has reached the disk, and
goes by one rename before anything in it is removed. Folders that begin with ``.tmp-`` are on their way in or out; what
does not match its digest is put away in ``.quarantine`` and never served.

The same folder may be used by several processes (a store on a local disk); each change of a name is made under one lock
file. Limits, pins and the order of use are this process's own. Knows no other place: where missing blobs come from is
``adapters.store``'s business. Methods may be called from any thread; all but ``pin``, ``unpin`` and ``known`` read or
write files, so never from an event loop.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from adapters.digest import digest_files, is_digest
from adapters.errors import CorruptBlobError

_QUARANTINE = ".quarantine"
_QUARANTINED_FOR_S = 7 * 86400.0
_LOCK_FILE = ".lock"
_TEMPORARY_PREFIX = ".tmp-"
_ABANDONED_AFTER_S = 3600.0

# Name, inode, size, times of change of every file: equal means that nobody touched the blob since it was verified.
_Signature = tuple[tuple[str, int, int, int, int], ...]


class LocalBlobs:
    """A folder of blobs.

    Args:
        folder: Where they are; made if missing.
        max_bytes: How much may lie there before the least recently used unpinned blobs go; None: no limit.

    Raises:
        OSError: If the folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None) -> None:
        """Take stock of what is there; nothing is trusted before it was verified."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # of the memory below only; never held over a call to the disk
        self._pins: Counter[str] = Counter()
        self._verified: dict[str, _Signature] = {}
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._reserved_bytes = 0
        self._gates: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_temporaries(_ABANDONED_AFTER_S)
        if max_bytes is not None:
            for digest in sorted(self._digests(), key=lambda digest: -_age_s(folder / digest)):
                self._sizes[digest] = sum(path.stat().st_size for path in (folder / digest).iterdir())

    def pin(self, digest: str) -> None:
        """Keep a blob, there or yet to come, from being evicted or swept by this process; counted."""
        with self._lock:
            self._pins[digest] += 1
            if digest in self._sizes:
                self._sizes.move_to_end(digest)

    def unpin(self, digest: str) -> None:
        """Take one pin back."""
        with self._lock:
            assert self._pins[digest] > 0, "unpinned more often than pinned"
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]

    def known(self, digest: str) -> Path | None:
        """Return the folder of a blob that was verified and not removed since, from memory alone."""
        with self._lock:
            return self._folder / digest if digest in self._verified else None

    @contextmanager
    def alone(self, digest: str) -> Iterator[None]:
        """Be the only thread that looks for or fetches this blob; while it does, the blob is not evicted."""
        with self._gate(digest):
            yield

    def find(self, digest: str) -> Path | None:
        """Return a blob's folder, its bytes verified; None if it is not there.

        It is hashed at its first use in this process and whenever a file differs since.

        Raises:
            CorruptBlobError: If the bytes do not match; they are in quarantine now.
            OSError: If the disk cannot be read.
        """
        path = self._folder / digest
        try:
            inode = path.stat().st_ino
            signature = _signature(path)
            with self._lock:
                known = self._verified.get(digest) == signature
            sound = known or (_is_regular(path) and digest_files(files_of(path)) == digest)
        except FileNotFoundError:
            self._forget(digest)
            return None
        if not sound:
            self._quarantine(digest, inode)
            raise CorruptBlobError(
                f"the stored bytes of adapter {digest[:12]} no longer match their digest; upload the adapter again"
            )
        self._remember(digest, signature)
        return path

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Give a folder to fill and :meth:`publish`; it is removed at the end if it is still there."""
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, temporary: Path, digest: str) -> Path:
        """Give a complete folder, whose bytes were found to match, its final name; return that.

        A sound blob already there wins, and counts as put now; a corrupt one is put away.

        Raises:
            OSError: If the disk cannot be written.
        """
        target = self._folder / digest
        _sync(temporary)
        while not self._move_in(temporary, target):
            try:
                if self.find(digest) is not None:
                    return target
            except CorruptBlobError:
                continue
        _sync_folder(self._folder)
        self._remember(digest, _signature(target))
        return target

    @contextmanager
    def room_for(self, num_bytes: int) -> Iterator[None]:
        """Evict until ``num_bytes`` more fit under the limit. What is in use stays, even over the limit.

        Raises:
            OSError: If the disk cannot be written.
        """
        with self._lock:
            self._reserved_bytes += num_bytes
        try:
            for digest in self._least_used_over_limit():
                self._remove(digest)
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= num_bytes

    def sweep(self, live: Callable[[], frozenset[str]], older_than_s: float) -> tuple[str, ...]:
        """Remove what no name needs and was put longer ago than ``older_than_s``; return the digests.

        Goes with it: folders that a process which died left on their way, and what is in quarantine for a week.

        Args:
            live: Returns the digests that are needed; asked after the blobs were listed, and again before each removal.
            older_than_s: Age from which a blob is taken.

        Raises:
            OSError: If the disk cannot be read or written.
        """
        self._remove_temporaries(older_than_s)
        for folder in (self._folder / _QUARANTINE).glob("*"):
            if _age_s(folder) >= _QUARANTINED_FOR_S:
                shutil.rmtree(folder, ignore_errors=True)
        found = self._digests()
        needed = live()

        def is_spared(digest: str) -> bool:
            return _age_s(self._folder / digest) < older_than_s or digest in live()

        return tuple(digest for digest in found if digest not in needed and self._remove(digest, is_spared))

    def is_there(self, digest: str) -> bool:
        """Return whether a blob is there and nobody is about to remove it.

        Raises:
            OSError: If the disk cannot be read.
        """
        with self._exclusive():
            return (self._folder / digest).is_dir()

    def _gate(self, digest: str) -> threading.Lock:
        with self._lock:
            return self._gates.setdefault(digest, threading.Lock())

    def _digests(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if is_digest(path.name)]

    def _least_used_over_limit(self) -> list[str]:
        if self._max_bytes is None:
            return []
        with self._lock:
            too_many_bytes = sum(self._sizes.values()) + self._reserved_bytes - self._max_bytes
            chosen = []
            for digest, size_bytes in self._sizes.items():
                if too_many_bytes <= 0:
                    break
                if not self._pins[digest]:
                    chosen.append(digest)
                    too_many_bytes -= size_bytes
            return chosen

    def _remove(self, digest: str, is_spared: Callable[[str], bool] = lambda _: False) -> bool:
        """Remove a blob unless it is pinned, being fetched, or spared, which is asked once nobody else may act."""
        gate = self._gate(digest)
        if not gate.acquire(blocking=False):
            return False
        try:
            with self._exclusive():
                path = self._folder / digest
                if not path.is_dir():
                    self._forget(digest)
                    return False
                if is_spared(digest):
                    return False
                with self._lock:
                    # From here on `known` denies it, so whoever pins it now asks `find` and waits at the gate.
                    if self._pins[digest]:
                        return False
                    self._verified.pop(digest, None)
                    self._sizes.pop(digest, None)
                leaving = self._folder / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
                path.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)
            return True
        finally:
            gate.release()

    def _move_in(self, temporary: Path, target: Path) -> bool:
        with self._exclusive():
            if target.is_dir():
                os.utime(target)  # a sweep that has not removed it by now finds it young
                return False
            os.utime(temporary)
            temporary.rename(target)
            return True

    def _quarantine(self, digest: str, inode: int) -> None:
        self._forget(digest)
        path = self._folder / digest
        with self._exclusive():
            # Only the folder that was looked at: another process may have put a sound one in its place.
            if path.is_dir() and path.stat().st_ino == inode:
                (self._folder / _QUARANTINE).mkdir(exist_ok=True)
                os.utime(path)
                path.rename(self._folder / _QUARANTINE / f"{digest}-{uuid.uuid4().hex}")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the folder's lock file: no other thread or process changes a name meanwhile."""
        with (self._folder / _LOCK_FILE).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remember(self, digest: str, signature: _Signature) -> None:
        with self._lock:
            self._verified[digest] = signature
            self._sizes[digest] = sum(size_bytes for _, _, size_bytes, _, _ in signature)
            self._sizes.move_to_end(digest)

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._verified.pop(digest, None)
            self._sizes.pop(digest, None)

    def _remove_temporaries(self, older_than_s: float) -> None:
        """Remove what a process that died left behind; young folders may belong to one that lives."""
        for folder in self._folder.glob(f"{_TEMPORARY_PREFIX}*"):
            with suppress(FileNotFoundError):  # the process it belongs to is done with it
                if min(_age_s(path) for path in (folder, *folder.iterdir())) >= older_than_s:
                    shutil.rmtree(folder, ignore_errors=True)


def files_of(folder: Path) -> dict[str, Path]:
    """Return a blob's files: name → path.

    Raises:
        OSError: If the folder cannot be read.
    """
    return {path.name: path for path in sorted(folder.iterdir())}


def _is_regular(folder: Path) -> bool:
    return all(stat.S_ISREG(path.lstat().st_mode) for path in folder.iterdir())


def _signature(folder: Path) -> _Signature:
    found = ((name, path.lstat()) for name, path in files_of(folder).items())
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in found)


def _age_s(path: Path) -> float:
    """Seconds since the last change; 0 if it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
