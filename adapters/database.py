"""How a database is opened: SQLite tuned for one writer and many readers, or PostgreSQL; migrated, errors made ours.

Knows no tables: each room brings its own Alembic scripts and its own version table, several may share a database. Every
function may be called from any thread, and by several processes at once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from sqlite3 import Connection as SqliteConnection
from sqlite3 import OperationalError as SqliteOperationalError

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from adapters.errors import StoreError

_BUSY_TIMEOUT_MS = 10_000
_BUSY_RETRY_S = 0.01
_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 30_000
_WRITES = "medley_writes"
_ERRORS = (SQLAlchemyError, CommandError, OSError)
_MIGRATION_LOCK = 0x6D65646C6579
_POSTGRESQL_NAMES = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
# A replica that freezes while it writes must not stop the others for ever, nor may a lost network.
_POSTGRESQL_SETTINGS = (
    f"SET lock_timeout = {_BUSY_TIMEOUT_MS}",
    f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}",
    f"SET idle_in_transaction_session_timeout = {_STATEMENT_TIMEOUT_MS}",
    # What was answered must survive a crash; stronger settings than "on" stay.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)


def open_database(url: str, scripts: Path, version_table: str) -> tuple[sa.Engine, sa.Engine]:
    """Open a database, migrate it to the newest of ``scripts`` and return an engine to read with and one to write with.

    Both share one pool. A transaction of the first sees the database as it was when it began. One of the second takes
    the write lock at once on SQLite, so that what it reads is still true when it writes; on PostgreSQL it has to lock a
    row first.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/name``.
        scripts: Folder of Alembic's ``env.py`` and ``versions``.
        version_table: Table that says how far these scripts went.

    Raises:
        StoreError: If the URL or the database cannot be used, or a newer Medley has migrated it further.
    """
    try:
        engine = _engine(sa.make_url(url))
        reader, writer = _halves(engine)
        try:
            migrate(writer, scripts, version_table)
        except BaseException:
            engine.dispose()
            raise
    except _ERRORS as error:
        # Who opens a database is its operator: he must be told what the driver said, which names no secret.
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise StoreError(f"the database cannot be opened: {said[0] if said else type(error).__name__}") from error
    return reader, writer


def migrate(writer: sa.Engine, scripts: Path, version_table: str) -> None:
    """Bring the tables of ``scripts`` up to date, in one transaction; other processes wait for it.

    Args:
        writer: Engine to write with.
        scripts: Folder of Alembic's ``env.py`` and ``versions``.
        version_table: Table that says how far these scripts went.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be written.
        alembic.util.CommandError: If a newer Medley has migrated it further.
    """
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes.update(connection=connection, version_table=version_table)
        command.upgrade(config, "head")


@contextmanager
def as_store_error() -> Iterator[None]:
    """Raise the errors of database and driver as ours, without the words of a statement or an address.

    Raises:
        StoreError: In place of any of them.
    """
    try:
        yield
    except _ERRORS as error:
        raise StoreError(f"the database cannot be used now ({type(error).__name__}); try again later") from error


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url)
        sa.event.listen(engine, "connect", _tune_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername in _POSTGRESQL_NAMES:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_timeout=_CONNECT_TIMEOUT_S,
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "tcp_user_timeout": _BUSY_TIMEOUT_MS},
        )
        sa.event.listen(engine, "connect", _tune_postgresql)
        return engine
    raise StoreError(f"no database of the kind {url.drivername!r} can be used; give a sqlite:// or postgresql:// URL")


def _halves(engine: sa.Engine) -> tuple[sa.Engine, sa.Engine]:
    if engine.dialect.name == "sqlite":
        return engine, engine.execution_options(**{_WRITES: True})
    return (
        engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        engine.execution_options(isolation_level="READ COMMITTED"),
    )


def _tune_sqlite(connection: SqliteConnection, _record: object) -> None:
    # Off, so that the driver does not begin transactions of its own kind; _begin_sqlite does.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}").close()
    _use_write_ahead_log(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _use_write_ahead_log(connection: SqliteConnection) -> None:
    # Who opens a new database first changes its mode; SQLite refuses all others at once, whatever its busy timeout.
    deadline_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except SqliteOperationalError as error:
            if error.sqlite_errorcode & 0xFF != SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
        time.sleep(_BUSY_RETRY_S)


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _tune_postgresql(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    for statement in _POSTGRESQL_SETTINGS:
        cursor.execute(statement)
    cursor.close()
    connection.commit()
