"""The data directory, where what must survive a restart lives; locked, so that two servers never share it.

It also holds the server's name among those of one registry. Functions may be called from any thread.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.core.errors import FailedPreconditionError


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Make the directory if need be and hold its lock; the system frees it when the process ends, however it ends.

    Raises:
        FailedPreconditionError: If another server holds it, or it cannot be made or written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        raise FailedPreconditionError(f"cannot use the data directory {data_dir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FailedPreconditionError(
                f"another server uses the data directory {data_dir}; stop it or choose another by --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def read_instance(data_dir: Path) -> str:
    """Return the word for the server of this directory, made once; it stays the same when the server starts again.

    Raises:
        FailedPreconditionError: If it cannot be read or written.
    """
    path = data_dir / "instance"
    try:
        if not path.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(".instance")
            beside.write_text(uuid.uuid4().hex)
            beside.replace(path)
        return path.read_text().strip()
    except OSError as error:
        raise FailedPreconditionError(f"cannot use the data directory {data_dir}: {error.strerror}") from error
