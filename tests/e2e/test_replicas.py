"""Two servers on one PostgreSQL and one S3 store: what one is told, the other does; bytes come through the store."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.alias_history import AliasHistory
from tests.fixtures.change_clients import ChangeClient, Refused
from tests.fixtures.left_behind import Places
from tests.fixtures.peft_files import lora_files
from tests.fixtures.postgres import running_postgres
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic

pytestmark = pytest.mark.slow
_log = logging.getLogger(__name__)

SEEN_WITHIN_S = 2.0
PATIENCE_S = 60.0
POLL_S = 0.2
NUM_MOVES = 20
NUM_CALLERS = 16
REFERENCE = "adapter@stable"
SIZE_BYTES = sum(len(data) for data in lora_files().values())


@dataclass
class Replicas:
    """Two servers."""

    first: ServerProcess
    second: ServerProcess
    places: Places

    @property
    def both(self) -> list[ServerProcess]:
        return [self.first, self.second]


@contextmanager
def replicas(folder: Path, max_local_bytes: int = 1 << 30, step_time_s: float = 0.001) -> Iterator[Replicas]:
    """Give two servers, not started yet; kill them at the end."""
    with running_postgres() as postgres, running_s3() as s3:
        places = Places(postgres.url(postgres.make_database()), s3.new_bucket(), s3.options)
        settings = {
            "registry": {"url": places.registry_url, "poll_s": POLL_S},
            "store": {"url": places.store_url, "options": s3.options, "max_local_bytes": max_local_bytes},
            "engine": {"step_time_s": step_time_s, "max_num_waiting": 256},
        }
        first, second = (ServerProcess(folder / name, settings) for name in ("first", "second"))
        found = Replicas(first, second, places)
        try:
            yield found
        finally:
            for server in found.both:
                server.kill()


def client_of(server: ServerProcess) -> ChangeClient:
    return ChangeClient(server.http, server.grpc)


class Changes:
    """Makes changes of one adapter, over either wire in turn."""

    def __init__(self) -> None:
        self._draws = random.Random(5)
        self._num_made = 0

    def of(self, kind: Kind, **fields: object) -> Change:
        """Return a change with a key of its own."""
        self._num_made += 1
        wire = ("http", "grpc")[self._num_made % 2]
        return Change(kind, "adapter", f"change-{self._num_made}", wire, **fields)  # type: ignore[arg-type]

    def upload(self, **fields: object) -> Change:
        """Return the upload of bytes never seen before."""
        return self.of(Kind.UPLOAD, seed=self._draws.getrandbits(32), **fields)


async def test_promotion_on_one_is_seen_by_the_other_in_time_under_load(tmp_path: Path) -> None:
    changes, history, stop = Changes(), AliasHistory(), asyncio.Event()
    with replicas(tmp_path) as servers:
        await asyncio.gather(*(server.start() for server in servers.both))
        traffic = Traffic(servers.both, [REFERENCE], NUM_CALLERS, think_s=0.05, seed=6)
        async with client_of(servers.first) as first, client_of(servers.second) as second:
            # Uploaded through one and the other in turn, and served by both.
            versions = [await client.send(changes.upload()) for client in (first, second, first, second)]
            assert versions == [1, 2, 3, 4]
            await _promote(first, changes, history, versions[0])
            seen_s = [await _until_seen(second, versions[0])]
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.run(stop))
                for turn in range(1, NUM_MOVES):
                    teller, other = (first, second) if turn % 2 else (second, first)
                    await _promote(teller, changes, history, versions[turn % 4])
                    seen_s.append(await _until_seen(other, versions[turn % 4]))
                stop.set()
    _log.info("%d answers; seen within %.2f s, half within %.2f s", len(traffic.served), max(seen_s), median(seen_s))
    assert traffic.failures == []
    # What others make this machine do may hold up a look or two, but not most of them.
    assert median(seen_s) < SEEN_WITHIN_S
    assert traffic.wrong({REFERENCE: history}, slack_s=max(SEEN_WITHIN_S, *seen_s)) == []
    assert {served.version for served in traffic.served} == set(versions)


async def test_delete_is_refused_while_the_other_runs_a_request_on_it(tmp_path: Path) -> None:
    changes = Changes()
    # 24 tokens at half a second each: the request outlives everything below it.
    with replicas(tmp_path, step_time_s=0.5) as servers:
        await asyncio.gather(*(server.start() for server in servers.both))
        async with client_of(servers.first) as first, client_of(servers.second) as second:
            for _ in range(2):
                await first.send(changes.upload())
            await first.send(changes.of(Kind.PROMOTE, version=2, alias="stable"))
            await _until_seen(second, 2)
            running = asyncio.create_task(second.ask(["adapter:1"], text="one two three four five"))
            # Until the other has said what it runs, at its next look, nothing is known of it here.
            async with asyncio.timeout(PATIENCE_S):
                while not servers.places.num_leases():  # noqa: ASYNC110 - the servers are other processes
                    await asyncio.sleep(POLL_S)
            assert not await _deleted(first, changes)
            assert not running.done(), "the machine was too slow for this test to show anything"
            await running
            async with asyncio.timeout(PATIENCE_S):
                while not await _deleted(first, changes):  # noqa: ASYNC110 - the servers are other processes
                    await asyncio.sleep(POLL_S)
            async with asyncio.timeout(PATIENCE_S):
                while 1 in (await second.state("adapter")).versions:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)


async def test_local_copies_are_evicted_by_size_and_fetched_again(tmp_path: Path) -> None:
    changes = Changes()
    with replicas(tmp_path, max_local_bytes=3 * SIZE_BYTES) as servers:
        await asyncio.gather(*(server.start() for server in servers.both))
        async with client_of(servers.first) as first, client_of(servers.second) as second:
            for _ in range(8):
                await first.send(changes.upload())
            await _until_newest(second, 8)
            for _ in range(2):
                for version in range(1, 9):
                    await second.ask([f"adapter:{version}"])
                    assert _size_of(servers.second.data_dir / "local") <= 3 * SIZE_BYTES
        assert _size_of(servers.first.data_dir / "local") <= 3 * SIZE_BYTES


async def _promote(client: ChangeClient, changes: Changes, history: AliasHistory, version: int) -> None:
    move = history.moving(version, time.monotonic())
    await client.send(changes.of(Kind.PROMOTE, version=version, alias="stable"))
    move.acknowledged_s = time.monotonic()


async def _until_seen(client: ChangeClient, version: int) -> float:
    """Wait until a server shows the alias at a version; return how long that took."""
    begun_s = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while (await client.state("adapter")).aliases.get("stable") != version:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return time.monotonic() - begun_s


async def _until_newest(client: ChangeClient, version: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while version not in (await client.state("adapter")).versions:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _deleted(client: ChangeClient, changes: Changes) -> bool:
    try:
        await client.send(changes.of(Kind.DELETE, version=1))
    except Refused as refused:
        if refused.code != "FAILED_PRECONDITION":
            raise
        return False
    return True


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
