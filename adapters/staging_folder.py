"""A folder that is being filled with an adapter's files, from a source or an archive.

Functions may be called from any thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def emptied_on_error(folder: Path) -> Iterator[None]:
    """Leave no file in a flat folder when what fills it fails.

    Raises:
        OSError: If a file cannot be removed.
    """
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        raise
