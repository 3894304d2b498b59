"""Uploads, promotions and deletions without pause under requests without pause: none fails, none is served wrongly."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.fixtures.adapter_changes import ALIASES, Change, Kind
from tests.fixtures.alias_history import AliasHistory
from tests.fixtures.change_clients import ChangeClient, Refused
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_log = logging.getLogger(__name__)

DURATION_S = 60.0
NUM_UPLOADERS = 16
NUM_REQUESTERS = 64
PROMOTE_EVERY_S = 0.1
UPLOAD_EVERY_S = 0.5
MAX_NUM_VERSIONS = 12
NAMES = tuple(f"adapter-{index}" for index in range(4))
SETTINGS = {
    "engine": {"max_num_seqs": 32, "max_num_waiting": 256, "max_loras": 32, "step_time_s": 0.001},
    "catalog": {"max_num_uploads": NUM_UPLOADERS},
}


class Churn:
    """Changes adapters while others use them.

    Attributes:
        histories: By ``name@alias``, where it pointed when.
        counts: What was done, how often.
        failures: Changes that were refused and should not have been.
    """

    def __init__(self, seed: int) -> None:
        self.histories = {f"{name}@{alias}": AliasHistory() for name in NAMES for alias in ALIASES}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._draws = random.Random(seed)
        self._versions: dict[str, list[int]] = {name: [] for name in NAMES}
        self._targets: dict[str, int] = {}

    async def upload(self, client: ChangeClient, name: str) -> None:
        """Upload a new version."""
        change = self._change(Kind.UPLOAD, name, seed=self._draws.getrandbits(32), archived=self._draws.random() < 0.5)
        self._versions[name].append(await client.send(change))

    async def promote(self, client: ChangeClient, name: str, alias: str) -> None:
        """Point an alias at another version, the newer the likelier."""
        reference = f"{name}@{alias}"
        others = [version for version in self._versions[name] if version != self._targets.get(reference)]
        if not others:
            return
        version = self._draws.choice(others[-4:])
        before, self._targets[reference] = self._targets.get(reference), version
        move = self.histories[reference].moving(version, time.monotonic())
        await client.send(self._change(Kind.PROMOTE, name, version=version, alias=alias))
        move.acknowledged_s = time.monotonic()
        if before is not None:
            self.counts["moved"] += 1

    async def delete_one(self, client: ChangeClient, name: str) -> None:
        """Delete a version no alias points at; a request that still uses it is a good reason to refuse."""
        pointed_at = {self._targets.get(f"{name}@{alias}") for alias in ALIASES}
        idle = [version for version in self._versions[name] if version not in pointed_at]
        if len(self._versions[name]) <= MAX_NUM_VERSIONS or not idle:
            return
        self._versions[name].remove(idle[0])
        try:
            await client.send(self._change(Kind.DELETE, name, version=idle[0]))
            self.counts["deleted"] += 1
        except Refused as refused:
            if refused.code != "FAILED_PRECONDITION":
                raise
            self.counts["in use"] += 1

    async def uploader(self, server: ServerProcess, index: int, stop: asyncio.Event) -> None:
        """Upload, and delete what is too much, until told to stop."""
        async with ChangeClient(server.http, server.grpc, pause_s=0.01) as client:
            while not stop.is_set():
                name = NAMES[index % len(NAMES)]
                await self._trying("uploaded", self.upload(client, name))
                await self._trying("looked for old ones", self.delete_one(client, name))
                await asyncio.sleep(UPLOAD_EVERY_S)

    async def promoter(self, server: ServerProcess, name: str, alias: str, stop: asyncio.Event) -> None:
        """Promote whenever it is this alias' turn, until told to stop: one moves, then the next, without waiting."""
        references = list(self.histories)
        next_s = time.monotonic() + references.index(f"{name}@{alias}") * PROMOTE_EVERY_S
        async with ChangeClient(server.http, server.grpc) as client:
            while not stop.is_set():
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                next_s += len(references) * PROMOTE_EVERY_S
                await self._trying("promoted", self.promote(client, name, alias))

    async def _trying(self, done: str, doing: Awaitable[None]) -> None:
        try:
            await doing
            self.counts[done] += 1
        except Refused as refused:
            self.failures.append(f"{done}: {refused.code} {refused.message}")

    def _change(self, kind: Kind, name: str, **fields: object) -> Change:
        wire = self._draws.choice(("http", "grpc"))
        return Change(kind, name, f"{self._draws.getrandbits(64):x}", wire, **fields)  # type: ignore[arg-type]


async def test_churn_no_request_fails_or_is_served_by_a_version_its_alias_did_not_point_at(tmp_path: Path) -> None:
    churn, stop = Churn(seed=3), asyncio.Event()
    server = ServerProcess(tmp_path, SETTINGS)
    traffic = Traffic([server], list(churn.histories), NUM_REQUESTERS, think_s=0.05, seed=4)
    await server.start()
    try:
        async with ChangeClient(server.http, server.grpc) as client:
            for name in NAMES:
                for alias in ALIASES:
                    await churn.upload(client, name)
                    await churn.promote(client, name, alias)
        async with asyncio.TaskGroup() as group:
            group.create_task(traffic.run(stop))
            for name in NAMES:
                for alias in ALIASES:
                    group.create_task(churn.promoter(server, name, alias, stop))
            for index in range(NUM_UPLOADERS):
                group.create_task(churn.uploader(server, index, stop))
            await asyncio.sleep(DURATION_S)
            stop.set()
        assert await server.stop() == 0
    finally:
        server.kill()
    versions = {(served.reference, served.version) for served in traffic.served}
    _log.info("%d answers by %d targets; %s", len(traffic.served), len(versions), dict(churn.counts))
    assert traffic.failures == []
    assert churn.failures == []
    assert traffic.wrong(churn.histories) == []
    # A machine too slow to do anything would find nothing wrong either.
    assert len(traffic.served) > NUM_REQUESTERS * 10
    assert churn.counts["moved"] > 10 * len(churn.histories)
    assert churn.counts["uploaded"] > NUM_UPLOADERS
    assert len(versions) > 2 * len(churn.histories)
