"""Names, versions, aliases; threads, processes, crashes."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapters import registry as registry_module
from adapters.errors import (
    AdapterNotFoundError,
    AdapterNotReadyError,
    InvalidAdapterReferenceError,
    PromptTemplateError,
    StoreError,
)
from adapters.manifest import AdapterKind, AdapterManifest
from adapters.registry import AdapterReference, Registry, VersionState, parse_reference
from adapters.registry_schema import METADATA, VERSIONS, open_database

MANIFEST = AdapterManifest(
    "ignored",
    AdapterKind.LORA,
    rank=4,
    task="summarization",
    licence="MIT",
    description="Für alle: ROUGE ≥ 31.",
    scores={"rouge1": 31.5},
    prompt_template="Sum: {{ text }}",
)


def digest(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'deep' / 'registry.db'}"


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = Registry(url)
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("news", AdapterReference("news")),
        ("news:3", AdapterReference("news", version=3)),
        ("news@stable", AdapterReference("news", alias="stable")),
        ("a.b_c-9", AdapterReference("a.b_c-9")),
    ],
)
def test_parse_reference_well_formed_is_read(reference: str, expected: AdapterReference) -> None:
    assert parse_reference(reference) == expected


@pytest.mark.parametrize(
    "reference",
    [
        *("", ":1", "@a", "a:", "a@", "a:0", "a:-1", "a:01", "a:1.0", "a:9999999999", "a:x", "a:1@b", "a@b:1", "a@b@c"),
        *("../etc/passwd", "a/b", "a\\b", "A", "ä", "a b", "a\n", "a\x00", "a..b", ".a", "a-", "a" * 64),
        *("a@" + "b" * 64, "a:\uff11", "x" * 100_000),
    ],
)
def test_parse_reference_malformed_is_refused(reference: str) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        parse_reference(reference)


def test_add_version_first_is_version_one_with_all_its_fields(registry: Registry) -> None:
    before_s = time.time()
    record = registry.add_version("news", digest(1), MANIFEST, 123, None)
    assert (record.name, record.version, record.digest) == ("news", 1, digest(1))
    assert (record.kind, record.state, record.rank, record.size_bytes) == (AdapterKind.LORA, VersionState.READY, 4, 123)
    assert (record.task, record.licence, record.description) == ("summarization", "MIT", "Für alle: ROUGE ≥ 31.")
    assert (record.scores, record.prompt_template) == ({"rouge1": 31.5}, "Sum: {{ text }}")
    assert before_s <= record.created_s <= time.time()
    assert registry.resolve("news") == record
    with pytest.raises(FrozenInstanceError):
        record.version = 2  # type: ignore[misc]


def test_add_version_same_bytes_twice_gives_the_same_version(registry: Registry) -> None:
    first = registry.add_version("news", digest(1), MANIFEST, 1, None)
    registry.add_version("news", digest(2), MANIFEST, 1, None)
    assert registry.add_version("news", digest(1), MANIFEST, 1, "stable") == first
    assert registry.get("news").aliases == {"stable": 1}
    assert registry.add_version("other", digest(1), MANIFEST, 1, None).version == 1


def test_resolve_bare_name_prefers_stable_then_newest(registry: Registry) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1)
    registry.add_version("news", digest(2), MANIFEST, 1)
    assert registry.resolve("news").version == 2
    registry.set_alias("news", "stable", 1)
    assert registry.resolve("news").version == 1
    assert registry.resolve("news:2").version == 2
    registry.set_alias("news", "canary", 2)
    assert registry.resolve("news@canary").version == 2
    registry.set_alias("news", "canary", 1)
    assert registry.resolve("news@canary").version == 1
    assert registry.get("news").aliases == {"stable": 1, "canary": 1}


@pytest.mark.parametrize("reference", ["other", "news:2", "news@stable", "news@x"])
def test_resolve_unknown_is_not_found(registry: Registry, reference: str) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1)
    with pytest.raises(AdapterNotFoundError):
        registry.resolve(reference)


def test_resolve_version_that_is_not_ready_is_refused(registry: Registry, url: str) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1, "stable")
    registry.add_version("news", digest(2), MANIFEST, 1)
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.update(VERSIONS).values(state="retired", reason="bad luck"))
    registry.add_version("news", digest(3), MANIFEST, 1)
    assert registry.resolve("news:3").version == 3
    for reference in ("news", "news:2", "news@stable"):
        with pytest.raises(AdapterNotReadyError, match="bad luck"):
            registry.resolve(reference)
    with pytest.raises(AdapterNotReadyError):
        registry.set_alias("news", "canary", 2)


def test_resolve_bare_name_without_stable_skips_retired_versions(registry: Registry, url: str) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1)
    with sa.create_engine(url).begin() as connection:
        connection.execute(
            sa.insert(VERSIONS).from_select(
                [column.name for column in VERSIONS.c],
                sa.select(
                    *[
                        sa.literal(2)
                        if column.name == "version"
                        else sa.literal("retired")
                        if column.name == "state"
                        else sa.literal(digest(2))
                        if column.name == "digest"
                        else column
                        for column in VERSIONS.c
                    ]
                ),
            )
        )
    registry.add_version("other", digest(1), MANIFEST, 1)
    registry._snapshot = None
    assert registry.resolve("news").version == 1


def test_set_alias_unknown_version_is_not_found_and_changes_nothing(registry: Registry) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1, "stable")
    for name, version in (("news", 2), ("other", 1)):
        with pytest.raises(AdapterNotFoundError):
            registry.set_alias(name, "stable", version)
    assert registry.resolve("news@stable").version == 1


@pytest.mark.parametrize(
    ("name", "number", "alias"),
    [("a/b", digest(1), None), ("a", "../x", None), ("a", digest(1), "b/c"), ("a", "A" * 64, None)],
)
def test_add_version_malformed_is_refused(registry: Registry, name: str, number: str, alias: str | None) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        registry.add_version(name, number, MANIFEST, 1, alias)
    assert registry.list() == ()


def test_add_version_with_hostile_template_is_refused(registry: Registry) -> None:
    manifest = AdapterManifest("x", AdapterKind.LORA, prompt_template="{{ text.__class__ }}")
    with pytest.raises(PromptTemplateError):
        registry.add_version("news", digest(1), manifest, 1)
    assert registry.list() == ()


def test_list_is_sorted_by_name(registry: Registry) -> None:
    for name in ("b", "c", "a"):
        registry.add_version(name, digest(1), MANIFEST, 1)
    assert [record.name for record in registry.list()] == ["a", "b", "c"]


def test_registry_opened_again_has_everything(url: str) -> None:
    first = Registry(url)
    record = first.add_version("news", digest(1), MANIFEST, 1, "stable")
    first.close()
    second = Registry(url)
    assert second.resolve("news@stable") == record
    second.close()


def test_registry_from_many_threads_numbers_every_version_once(registry: Registry) -> None:
    versions: list[int] = []
    errors: list[BaseException] = []

    def add(start: int) -> None:
        try:
            for number in range(start, start + 5):
                versions.append(registry.add_version("news", digest(number), MANIFEST, 1, "stable").version)
                assert registry.resolve("news").version <= 40
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(5 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(versions) == list(range(1, 41))
    assert len(registry.get("news").versions) == 40


def test_resolve_right_after_own_write_sees_it_without_asking_the_database(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_version("news", digest(1), MANIFEST, 1)
    registry.resolve("news")
    monkeypatch.setattr(registry_module, "_MAX_STALENESS_S", 1e9)
    registry._snapshot = None
    registry.resolve("news")
    registry.add_version("news", digest(2), MANIFEST, 1)

    def refuse() -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(registry._reader, "begin", refuse)
    assert registry.resolve("news").version == 2


def test_resolve_sees_another_process_within_a_second(registry: Registry, url: str) -> None:
    other = Registry(url)
    registry.add_version("news", digest(1), MANIFEST, 1, "stable")
    assert other.resolve("news").version == 1
    registry.add_version("news", digest(2), MANIFEST, 1, "stable")
    deadline_s = time.monotonic() + 1.5
    while other.resolve("news").version != 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    other.close()


def test_list_after_two_processes_wrote_in_turn_misses_neither(
    registry: Registry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_MAX_STALENESS_S", 1e9)
    other = Registry(url)
    assert registry.list() == ()
    other.add_version("more", digest(1), MANIFEST, 1)
    registry.add_version("rest", digest(2), MANIFEST, 1)
    assert [record.name for record in registry.list()] == ["more", "rest"]
    other.close()


def test_resolve_is_cheap(registry: Registry) -> None:
    for number in range(50):
        registry.add_version(f"a{number}", digest(number), MANIFEST, 1)
    start_s = time.perf_counter()
    for _ in range(1000):
        registry.resolve("a7")
    assert (time.perf_counter() - start_s) / 1000 < 1e-3


def test_registry_killed_while_writing_keeps_what_was_answered(url: str) -> None:
    script = textwrap.dedent(f"""
        from adapters.manifest import AdapterKind, AdapterManifest
        from adapters.registry import Registry
        registry = Registry({url!r})
        for number in range(10_000):
            registry.add_version("news", f"{{number:064x}}", AdapterManifest("x", AdapterKind.LORA), 1, "stable")
            print(number, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            pass
        os.kill(process.pid, signal.SIGKILL)
        answered = [20, *(int(line) for line in process.stdout if line.endswith("\n"))]
    registry = Registry(url)
    record = registry.get("news")
    assert len(record.versions) >= answered[-1] + 1
    assert [version.version for version in record.versions] == list(range(1, len(record.versions) + 1))
    assert record.aliases == {"stable": len(record.versions)}
    registry.close()


def test_open_by_several_processes_at_once_migrates_once(url: str) -> None:
    script = f"from adapters.registry import Registry; print(Registry({url!r}).list())"
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["()"] * 3


def test_migrations_make_the_tables_the_code_describes(url: str) -> None:
    reader, _ = open_database(url)
    with reader.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    reader.dispose()


def test_open_of_a_database_from_a_newer_medley_is_refused(url: str, registry: Registry) -> None:
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError):
        Registry(url)


def test_open_of_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError):
        Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    with pytest.raises(StoreError):
        Registry("nonsense")


def test_alias_of_a_missing_version_is_refused_by_the_database(tmp_path: Path, registry: Registry, url: str) -> None:
    path = url.removeprefix("sqlite:///")
    with pytest.raises(sa.exc.IntegrityError), registry._writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO aliases VALUES ('ghost', 'stable', 1)")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM aliases").fetchone() == (0,)
    connection.close()
