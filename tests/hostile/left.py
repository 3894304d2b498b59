"""What a server keeps, whole: every file and every row, so that before and after can be compared."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

# What changes by itself: when a server last said that it lives, what it serves, and what it answered a moment ago.
_CHANGING = ("lease", "instance", "sqlite_", "alembic", "revision", "evaluation_")


def left(data_dir: Path) -> tuple[list[str], dict[str, list[Any]]]:
    """Every file and folder of the server, and every row of its database."""
    database = next(data_dir.glob("*.db"))
    # Unlike rglob, walk passes over a folder that goes away meanwhile.
    found = [Path(folder) / name for folder, folders, files in os.walk(data_dir) for name in (*folders, *files)]
    paths = [str(path.relative_to(data_dir)) for path in found if not path.name.startswith(database.name)]
    rows = {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if not any(word in table for word in _CHANGING):
                rows[table] = sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=str)
    return sorted(paths), rows
