"""Several servers on one database, threads, a database that goes away, a process that is killed."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise

import pytest
import sqlalchemy as sa

from adapters import audit
from adapters.errors import StoreError
from adapters.registry import AdapterRecord, Registry
from adapters.registry_schema import VERSIONS
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.registry import ANNA, Clock, add_version, digest
from tests.unit.adapters.conftest import Opener


def run_all(works: list[Callable[[], object]]) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_own_change_is_seen_at_once_and_a_foreign_one_after_a_refresh(
    registry: Registry, open_registry: Opener
) -> None:
    other = open_registry("other")
    add_version(registry, "news", 1, "stable")
    assert registry.resolve("news").version == 1
    assert other.list() == ()
    other.refresh()
    assert other.resolve("news") == registry.resolve("news")
    add_version(other, "news", 2, "stable")
    registry.refresh()
    assert registry.resolve("news").version == 2


def test_refresh_reads_only_names_that_changed(registry: Registry, open_registry: Opener) -> None:
    other = open_registry("other")
    add_version(registry, "news", 1)
    add_version(registry, "mail", 1)
    other.refresh()
    news, mail, generation = other.get("news"), other.get("mail"), other.generation
    other.refresh()
    assert other.generation == generation
    registry.set_alias("mail", "stable", 1, ANNA)
    other.refresh()
    assert other.get("news") is news
    assert other.get("mail") is not mail
    assert other.generation != generation


def test_changes_of_two_servers_in_turn_are_all_seen(registry: Registry, open_registry: Opener) -> None:
    other = open_registry("other")
    add_version(other, "more", 1)
    add_version(registry, "rest", 2)
    assert [record.name for record in registry.list()] == ["rest"]
    registry.refresh()
    assert [record.name for record in registry.list()] == ["more", "rest"]


def test_own_change_does_not_hide_a_later_one_that_was_seen_first(
    registry: Registry, open_registry: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_registry("other")
    add_version(registry, "news", 1, "stable")
    publish = registry._copy._publish

    def publish_late(counter: int, record: AdapterRecord) -> None:
        other.set_alias("news", "later", 1, ANNA)
        registry.refresh()
        publish(counter, record)

    monkeypatch.setattr(registry._copy, "_publish", publish_late)
    assert registry.set_alias("news", "first", 1, ANNA).aliases == {"stable": 1, "first": 1}
    assert registry.get("news").aliases == {"stable": 1, "first": 1, "later": 1}


def test_refresh_on_an_older_copy_of_the_database_forgets_what_is_not_in_it(registry: Registry) -> None:
    add_version(registry, "news", 1)
    with registry._copy._writer.begin() as connection:
        for table in ("adapters", "adapter_versions"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql("UPDATE revision SET counter = 1")
    registry.refresh()
    assert registry.list() == ()


def test_versions_added_by_two_servers_and_their_threads_are_numbered_once(
    registry: Registry, open_registry: Opener
) -> None:
    servers = [registry, open_registry("other")]
    run_all(
        [
            lambda server=server, start=start: [
                add_version(server, "news", number, "stable") for number in range(start, start + 5)
            ]
            for start, server in zip(range(0, 40, 5), servers * 4, strict=True)
        ]
    )
    for server in servers:
        server.refresh()
    versions = registry.get("news").versions
    assert [server.get("news") for server in servers] == [registry.get("news")] * 2
    assert len({version.version for version in versions}) == len(versions) == 40
    assert {version.digest for version in versions} == {digest(number) for number in range(40)}
    assert len(registry.audit()) == 40


def test_same_bytes_added_by_two_servers_and_their_threads_are_one_version(
    registry: Registry, open_registry: Opener
) -> None:
    servers = [registry, open_registry("other")]
    run_all([lambda server=server: add_version(server, "news", 1) for server in servers * 8])
    registry.refresh()
    assert len(registry.get("news").versions) == 1


def test_promotions_of_several_names_and_servers_lose_none_and_do_not_deadlock(
    registry: Registry, open_registry: Opener
) -> None:
    servers = [registry, open_registry("other"), open_registry("third")]
    for name in ("a", "b"):
        add_version(registry, name, 1, "stable")
        add_version(registry, name, 2)
    run_all(
        [
            lambda server=server, name=name: [
                server.set_alias(name, "stable", 1 + number % 2, ANNA) for number in range(20)
            ]
            for server in servers
            for name in ("a", "b")
        ]
    )
    for server in servers:
        server.refresh()
    assert len({str([record.aliases for record in server.list()]) for server in servers}) == 1
    moves = [row for row in registry.audit(limit=1000) if row.action == "set_alias" and row.name == "a"]
    # Every promotion that was written down began where the one before had ended.
    assert all(later.detail == f"was at version {earlier.version}" for later, earlier in pairwise(moves))


def test_refresh_beside_changes_never_goes_back(registry: Registry) -> None:
    add_version(registry, "news", 1, "stable")
    add_version(registry, "news", 2)
    ended = threading.Event()

    def promote() -> None:
        try:
            for number in range(60):
                registry.set_alias("news", "stable", 1 + number % 2, ANNA)
                assert registry.resolve("news").version == 1 + number % 2
        finally:
            ended.set()

    def look() -> None:
        while not ended.is_set():
            registry.refresh()

    run_all([promote, look, look])


def test_database_refuses_two_live_versions_with_the_same_bytes(registry: Registry) -> None:
    add_version(registry, "news", 1)
    add_version(registry, "news", 2)
    with pytest.raises(sa.exc.IntegrityError), registry._copy._writer.begin() as connection:
        connection.execute(sa.update(VERSIONS).values(digest=digest(1)))


def test_change_whose_audit_row_fails_is_not_made(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(registry, "news", 1)

    def fail(_connection: sa.Connection, _record: audit.AuditRecord) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk full"))

    monkeypatch.setattr(audit, "write", fail)
    before = registry.get("news")
    with pytest.raises(StoreError) as caught:
        registry.set_alias("news", "stable", 1, ANNA)
    assert "disk" not in caught.value.message
    registry.refresh()
    assert registry.get("news") == before


def test_change_that_fails_at_its_end_leaves_no_audit_row(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(registry, "news", 1)
    rows = registry.audit()

    def fail(*_args: object) -> None:
        raise sa.exc.OperationalError("UPDATE", {}, Exception("connection lost"))

    monkeypatch.setattr("adapters.registry_writes.bump", fail)
    with pytest.raises(StoreError):
        registry.set_alias("news", "stable", 1, ANNA)
    assert registry.audit() == rows


def test_database_away_reads_go_on_and_changes_are_refused_until_it_is_back(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    name = str(sa.make_url(postgres_url).database)
    with closing(Registry(postgres_url)) as registry:
        add_version(registry, "news", 1, "stable")
        postgres_server.shut(name)
        for change in (
            registry.refresh,
            registry.live_digests,
            registry.audit,
            lambda: registry.leased_elsewhere(digest(1)),
            lambda: registry.publish_leases(frozenset({digest(1)}), ttl_s=10.0),
            lambda: registry.set_alias("news", "canary", 1, ANNA),
            lambda: registry.begin_version("news", ANNA, lease_s=60.0),
        ):
            with pytest.raises(StoreError):
                change()
        assert registry.resolve("news@stable").version == 1
        postgres_server.open(name)
        registry.refresh()
        assert registry.set_alias("news", "canary", 1, ANNA).aliases == {"stable": 1, "canary": 1}


def test_lease_is_seen_by_other_servers_until_it_ends(registry: Registry, open_registry: Opener, clock: Clock) -> None:
    other = open_registry("other")
    registry.publish_leases(frozenset({digest(1), digest(2)}), ttl_s=10.0)
    assert other.leased_elsewhere(digest(1))
    assert not other.leased_elsewhere(digest(3))
    assert not registry.leased_elsewhere(digest(1))
    registry.publish_leases(frozenset({digest(2)}), ttl_s=10.0)
    assert not other.leased_elsewhere(digest(1))
    clock.now_s += 10.5
    assert not other.leased_elsewhere(digest(2))
    registry.publish_leases(frozenset({digest(2)}), ttl_s=10.0)
    assert other.leased_elsewhere(digest(2))
    registry.publish_leases(frozenset(), ttl_s=10.0)
    assert not other.leased_elsewhere(digest(2))


def test_lease_of_a_server_that_never_comes_back_is_removed_after_a_day(
    registry: Registry, open_registry: Opener, clock: Clock
) -> None:
    open_registry("gone").publish_leases(frozenset({digest(1)}), ttl_s=10.0)
    clock.now_s += 24 * 3600.0 + 11.0
    registry.publish_leases(frozenset({digest(2)}), ttl_s=10.0)
    with registry._copy._reader.begin() as connection:
        assert connection.exec_driver_sql("SELECT instance, word FROM leases").all() == [("mine", digest(2))]


def test_lease_without_news_does_not_ask_the_database(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish_leases(frozenset({digest(1)}), ttl_s=10.0)

    def refuse() -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(registry._leases._writer, "begin", refuse)
    clock.now_s += 4.9
    registry.publish_leases(frozenset({digest(1)}), ttl_s=10.0)
    clock.now_s += 0.2
    with pytest.raises(AssertionError):
        registry.publish_leases(frozenset({digest(1)}), ttl_s=10.0)


def test_process_killed_while_it_writes_keeps_what_was_answered(database_url: str) -> None:
    script = textwrap.dedent(f"""
        from adapters.registry import AdapterRecord, Registry
        from tests.fixtures.registry import add_version
        registry = Registry({database_url!r}, instance="mine")
        for number in range(10_000):
            add_version(registry, "news", number, "stable")
            print(number, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            pass
        os.kill(process.pid, signal.SIGKILL)
        answered = [20, *(int(line) for line in process.stdout if line.endswith("\n"))]
    with closing(Registry(database_url, instance="mine")) as registry:
        record = registry.get("news")
        num_ready = len(record.versions)
        assert {version.state for version in record.versions} == {"ready"}
        assert [version.version for version in record.versions] == list(range(1, num_ready + 1))
        assert answered[-1] + 1 <= num_ready <= answered[-1] + 2
        assert record.aliases == {"stable": num_ready}
        assert len(registry.audit(limit=1000)) == min(num_ready, 1000)
