"""The registry's tables and how its database is opened: SQLite tuned for one writer and many readers, then migrated.

Knows no rules of adapters. :func:`open_database` may be called from any thread and by several processes at once.
"""

from pathlib import Path
from sqlite3 import Connection as SqliteConnection

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 10_000
_WRITES = "medley_writes"

METADATA = sa.MetaData()
VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("num_virtual_tokens", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("licence", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("scores", sa.JSON, nullable=False),
    sa.Column("prompt_template", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.UniqueConstraint("name", "digest", name="one_version_per_digest"),
)
ALIASES = sa.Table(
    "aliases",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"], name="alias_of_version"),
)
# One row; its counter grows with every change, so that other processes see cheaply that there was one.
REVISION = sa.Table(
    "revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
)


def open_database(url: str) -> tuple[sa.Engine, sa.Engine]:
    """Open a database, migrate it to this code's schema and return an engine to read with and one to write with.

    Both share one pool; on SQLite, transactions of the second take the write lock at once, so that what they read is
    still true when they write.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the URL or the database cannot be used.
        alembic.util.CommandError: If a newer Medley has migrated the database further.
        OSError: If the folder of a SQLite file cannot be made.
    """
    parsed = sa.make_url(url)
    reader = sa.create_engine(parsed)
    if reader.dialect.name == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        sa.event.listen(reader, "connect", _tune)
        sa.event.listen(reader, "begin", _begin)
    writer = reader.execution_options(**{_WRITES: True})
    try:
        _migrate(writer)
    except BaseException:
        reader.dispose()
        raise
    return reader, writer


def _tune(connection: SqliteConnection, _record: object) -> None:
    # Off, so that the driver does not begin transactions of its own kind; _begin does.
    connection.isolation_level = None
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _migrate(writer: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with writer.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
