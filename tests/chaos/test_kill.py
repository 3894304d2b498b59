"""``kill -9`` at random moments of uploads, promotions, rollbacks and deletions: nothing acknowledged is lost.

What is not acknowledged is absent, or whole where the kill fell between its commit and its answer; how often that was
the case is logged. Half states, staged files and bytes without a version older than the grace fail the test.
"""

import asyncio
import logging
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.adapter_changes import Kind
from tests.fixtures.crash_driver import CrashDriver
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.left_behind import Places, staged
from tests.fixtures.mortal_postgres import mortal_postgres
from tests.fixtures.postgres import running_postgres
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_process import ServerProcess

# Far more than it takes, for a machine that does other things too.
pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
_log = logging.getLogger(__name__)

GRACE_S = 4.0
SWEEP_EVERY_S = 0.5
NUM_OUTAGES = 3
PATIENCE_S = 30.0


def settings_of(places: Places | None = None) -> dict[str, object]:
    store: dict[str, object] = {"sweep_grace_s": GRACE_S, "sweep_every_s": SWEEP_EVERY_S}
    registry: dict[str, object] = {}
    if places is not None:
        store |= {"url": places.store_url, "options": dict(places.store_options)}
        registry = {"url": places.registry_url}
    return {"store": store, "registry": registry, "catalog": {"max_num_uploads": 16}}


async def check_all(driver: CrashDriver, places: Places) -> None:
    """Nothing is lost, half done or left behind."""
    await driver.check()
    assert places.half_versions() == []
    assert staged(driver.server.data_dir) == []
    await swept(places, GRACE_S)


async def swept(places: Places, older_than_s: float) -> None:
    """Wait for the next sweep, as bytes may be old and their version retired a moment ago; fail if they stay."""
    until_s = time.monotonic() + PATIENCE_S
    while orphans := await asyncio.to_thread(places.orphans, older_than_s):
        assert time.monotonic() < until_s, orphans
        await asyncio.sleep(SWEEP_EVERY_S / 2)


async def kill_again_and_again(driver: CrashDriver, places: Places, num_kills: int, local_dir: Path) -> Fault:
    """Kill at every stage of every kind of change, evenly, in random order; check after every start."""
    moments = [(kind, (each + driver.draws.random()) / num_kills * 1.2) for each, kind in enumerate(_kinds(num_kills))]
    driver.draws.shuffle(moments)
    await driver.start()
    try:
        for kind, share in moments:
            await driver.until_killed(kind, share)
            await driver.start()
            await check_all(driver, places)
        await swept(places, 0.0)
        num_blobs = await asyncio.to_thread(places.check_bytes, local_dir)
        assert await driver.server.stop() == 0
    finally:
        driver.server.kill()
    _log.info("%d kills; %s; %d blobs verified", num_kills, driver.tally, num_blobs)
    assert sum(driver.tally.num_cut_off.values()) >= num_kills
    assert all(driver.tally.num_acknowledged[kind] for kind in Kind)
    return Fault(
        f"kill -9 of the server, {num_kills} times amid changes",
        sent=f"{driver.tally.num_acknowledged.total()} changes acknowledged, "
        f"{driver.tally.num_cut_off.total()} cut off",
        lost="nothing acknowledged",
        recovered_s=statistics.median(driver.tally.start_s),
    )


def _kinds(num_kills: int) -> list[Kind]:
    kinds = list(Kind)
    return [kinds[each % len(kinds)] for each in range(num_kills)]


async def test_killed_server_on_sqlite_and_a_local_store_loses_nothing(
    tmp_path: Path, record_fault: RecordFault
) -> None:
    server = ServerProcess(tmp_path / "server", settings_of())
    places = Places(f"sqlite:///{server.data_dir / 'registry.db'}", (server.data_dir / "store").as_uri())
    fault = await kill_again_and_again(CrashDriver(server, seed=1), places, 30, tmp_path / "copies")
    record_fault(replace(fault, name=f"{fault.name}, SQLite and local store"))


async def test_killed_server_on_postgresql_and_s3_loses_nothing(tmp_path: Path, record_fault: RecordFault) -> None:
    with running_postgres() as postgres, running_s3() as s3:
        places = Places(postgres.url(postgres.make_database()), s3.new_bucket(), s3.options)
        server = ServerProcess(tmp_path / "server", settings_of(places))
        fault = await kill_again_and_again(CrashDriver(server, seed=2), places, 20, tmp_path / "copies")
    record_fault(replace(fault, name=f"{fault.name}, PostgreSQL and S3"))


async def test_killed_postgresql_leaves_inference_alone_and_loses_nothing(
    tmp_path: Path, record_fault: RecordFault
) -> None:
    with mortal_postgres() as postgres:
        running = postgres.start()
        places = Places(running.url(running.make_database()), (tmp_path / "store").as_uri())
        driver = CrashDriver(ServerProcess(tmp_path / "server", settings_of(places)), seed=3)
        await driver.start()
        recovered_s: list[float] = []
        try:
            for _ in range(NUM_OUTAGES):
                await driver.outage(postgres)
                begun_s = time.monotonic()
                async with asyncio.timeout(PATIENCE_S):
                    while places.half_versions():  # noqa: ASYNC110 - the server is another process
                        await asyncio.sleep(SWEEP_EVERY_S)
                await driver.caught_up(places.state)
                recovered_s.append(time.monotonic() - begun_s)
                await check_all(driver, places)
            num_blobs = await asyncio.to_thread(places.check_bytes, tmp_path / "copies")
            assert await driver.server.stop() == 0
        finally:
            driver.server.kill()
    _log.info("%d outages; %s; %d blobs verified", NUM_OUTAGES, driver.tally, num_blobs)
    assert driver.tally.num_refused >= NUM_OUTAGES
    assert driver.tally.num_asked_in_outages >= NUM_OUTAGES
    record_fault(
        Fault(
            f"kill -9 of PostgreSQL, {NUM_OUTAGES} times amid changes",
            sent=f"{driver.tally.num_asked_in_outages} requests and changes meanwhile",
            refused=f"{driver.tally.num_refused} changes",
            lost="nothing; every request was answered",
            recovered_s=statistics.median(recovered_s),
        )
    )
