"""Opening and migrating databases, on SQLite and PostgreSQL."""

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from adapters.database import migrate, open_database
from adapters.errors import StoreError
from adapters.registry import Registry, VersionState
from adapters.registry_schema import METADATA, SCRIPTS, VERSION_TABLE
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.registry import ANNA, MANIFEST, add_version, digest

OLD_ROW = {
    "kind": "lora",
    "reason": "",
    "rank": 4,
    "num_virtual_tokens": 0,
    "size_bytes": 5_000_000_000,
    "task": "summarization",
    "licence": "MIT",
    "description": "Ä",
    "prompt_template": "",
    "created_s": 1.5,
}
OLD_VERSIONS = [("news", 1, "ready"), ("news", 2, "retired"), ("mail", 1, "ready")]


@contextmanager
def opened(url: str) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    reader, writer = open_database(url, SCRIPTS, VERSION_TABLE)
    try:
        yield reader, writer
    finally:
        reader.dispose()


def go_to(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    command.downgrade(config, revision)


def old_database(url: str) -> None:
    """Leave a database as the first migration made it, with rows in it."""
    with opened(url) as (_, writer), writer.begin() as connection:
        go_to(connection, "0001")
        for name, version, state in OLD_VERSIONS:
            row = {**OLD_ROW, "name": name, "version": version, "state": state, "digest": digest(version)}
            columns = ", ".join(row)
            values = ", ".join(f":{column}" for column in row)
            connection.execute(
                sa.text(f"INSERT INTO versions ({columns}, scores) VALUES ({values}, '{{\"rouge1\": 31.5}}')"), row
            )
        connection.exec_driver_sql("INSERT INTO aliases VALUES ('news', 'stable', 1)")
        connection.exec_driver_sql("UPDATE revision SET counter = 7")


def test_migrations_make_the_tables_the_code_describes(database_url: str) -> None:
    with opened(database_url) as (reader, _), reader.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_migration_up_keeps_the_rows_of_an_old_database(database_url: str) -> None:
    old_database(database_url)
    with closing(Registry(database_url)) as registry:
        mail, news = registry.list()
        assert (mail.name, len(mail.versions), mail.aliases) == ("mail", 1, {})
        assert [version.state for version in news.versions] == [VersionState.READY, VersionState.RETIRED]
        assert news.aliases == {"stable": 1}
        first = registry.resolve("news")
        assert (first.digest, first.size_bytes, first.scores) == (digest(1), 5_000_000_000, {"rouge1": 31.5})
        assert (first.description, first.created_s, first.tags, first.metrics) == ("Ä", 1.5, (), ())
        assert add_version(registry, "news", 3, "stable").version == 3
        assert registry.rollback("news", "stable", ANNA).aliases == {"stable": 1}


def test_migration_down_keeps_what_the_old_tables_can_hold(database_url: str) -> None:
    with closing(Registry(database_url)) as registry:
        add_version(registry, "news", 1)
        registry.retire("news", 1, reason="old", change=ANNA, force=False)
        add_version(registry, "news", 1, "stable")
        add_version(registry, "news", 2)
        registry.retire("news", 3, reason="bad", change=ANNA, force=False)
        registry.begin_version("news", ANNA, lease_s=60.0)
        registry.begin_version("mail", ANNA, lease_s=60.0)
        before = registry.get("news")
    with opened(database_url) as (_, writer), writer.begin() as connection:
        go_to(connection, "0001")
        rows = connection.exec_driver_sql("SELECT name, version, digest, state FROM versions ORDER BY version")
        assert list(map(tuple, rows)) == [("news", 2, digest(1), "ready"), ("news", 3, digest(2), "retired")]
        aliases = connection.exec_driver_sql("SELECT * FROM aliases")
        assert list(map(tuple, aliases)) == [("news", "stable", 2)]
    with closing(Registry(database_url)) as registry:
        assert registry.get("news").versions == before.versions[1:3]
    with opened(database_url) as (_, writer), writer.begin() as connection:
        go_to(connection, "base")
        assert sa.inspect(connection).get_table_names() == [VERSION_TABLE]


def test_metrics_of_a_version_are_there_after_a_restart(database_url: str) -> None:
    with closing(Registry(database_url)) as registry:
        add_version(registry, "news", 1, manifest=replace(MANIFEST, metrics=("rouge", "bleu")))
    with closing(Registry(database_url)) as registry:
        assert registry.resolve("news").metrics == ("rouge", "bleu")


def test_open_by_several_processes_at_once_migrates_once(database_url: str) -> None:
    old_database(database_url)
    script = (
        "from contextlib import closing\nfrom adapters.registry import Registry\n"
        f"with closing(Registry({database_url!r})) as registry: print([record.name for record in registry.list()])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate() for process in processes] == [("['mail', 'news']\n", "")] * 3


def test_two_rooms_migrate_one_database_each_by_its_own_table(database_url: str, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text((SCRIPTS / "env.py").read_text())
    (scripts / "versions" / "k0001.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = 'k1'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('keys', sa.Column('id', sa.Integer, primary_key=True))\n"
    )
    with opened(database_url) as (reader, writer):
        for _ in range(2):
            migrate(writer, scripts, "keys_revision")
        with reader.connect() as connection:
            assert {"keys", "keys_revision", VERSION_TABLE} <= set(sa.inspect(connection).get_table_names())


def test_sqlite_is_tuned_for_readers_beside_a_writer(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'registry.db'}") as (reader, _), reader.connect() as connection:
        for pragma, value in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("busy_timeout", 10_000),
        ):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_new_sqlite_database_that_another_writes_to_is_opened_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    # Not yet in WAL mode, and a writer in it: SQLite refuses the change of mode without waiting.
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        commit = threading.Timer(0.2, other.execute, ("COMMIT",))
        commit.start()
        with opened(f"sqlite:///{path}") as (reader, _), reader.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        commit.join()


def test_postgresql_commits_are_durable_and_waits_end(postgres_server: PostgresServer, postgres_url: str) -> None:
    name = str(sa.make_url(postgres_url).database)
    postgres_server.execute("ALTER DATABASE {} SET synchronous_commit = off", name)
    with opened(postgres_url) as (reader, writer):
        with writer.connect() as connection:
            settings = ("synchronous_commit", "lock_timeout", "transaction_isolation", "transaction_read_only")
            shown = [connection.exec_driver_sql(f"SHOW {setting}").scalar() for setting in settings]
            assert shown == ["on", "10s", "read committed", "off"]
        with reader.connect() as connection:
            shown = [connection.exec_driver_sql(f"SHOW {setting}").scalar() for setting in settings]
            assert shown == ["on", "10s", "repeatable read", "on"]


def test_postgresql_setting_stronger_than_on_is_kept(postgres_server: PostgresServer, postgres_url: str) -> None:
    name = str(sa.make_url(postgres_url).database)
    postgres_server.execute("ALTER DATABASE {} SET synchronous_commit = remote_apply", name)
    with opened(postgres_url) as (_, writer), writer.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "remote_apply"


def test_open_of_a_database_from_a_newer_medley_is_refused(database_url: str) -> None:
    with opened(database_url) as (_, writer), writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="9999"):
        Registry(database_url)


def test_open_of_no_database_says_why(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is no database" * 100)
    for url, reason in (
        (f"sqlite:///{tmp_path / 'registry.db'}", "not a database"),
        ("nonsense", "parse"),
        ("mysql://root:hunter2@localhost/x", "mysql"),
        ("postgresql://root:hunter2@localhost:1/x", "failed"),
        (f"postgresql://postgres:hunter2@/x?host={tmp_path}", "failed"),
    ):
        with pytest.raises(StoreError, match=reason) as caught:
            Registry(url)
        assert "hunter2" not in json.dumps(caught.value.message)


def test_alias_of_a_missing_version_is_refused_by_the_database(database_url: str) -> None:
    with opened(database_url) as (_, writer), pytest.raises(sa.exc.IntegrityError), writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO adapter_aliases VALUES ('ghost', 'stable', 1, '[]')")
