"""References left waiting are scored, and what is too old goes; a database that is away is tried again."""

import asyncio
import time

import pytest

from adapters.errors import StoreError
from server.evaluation.config import EvaluationConfig
from server.evaluation.records import Entry, Record
from server.evaluation.upkeep import EvaluationUpkeep
from tests.fixtures.outcomes import record_of
from tests.fixtures.registry import Clock
from tests.unit.server.evaluation.conftest import OpenStore

CONFIG = EvaluationConfig(upkeep_every_s=0.01, claim_lease_s=60.0, max_age_s=1000.0, max_num_queued=4)


async def test_references_left_waiting_are_offered_when_their_lease_has_ended(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store(store_texts=True)
    records = [record_of(request_id=f"r{number}", finished_s=clock.now_s) for number in range(3)]
    store.write([Entry(record, references=("x",)) for record in records])
    offered: list[tuple[Record, tuple[str, ...]]] = []
    upkeep = EvaluationUpkeep(store, lambda *each: offered.append(each), CONFIG)
    upkeep.look()
    assert offered == []
    clock.now_s += 61.0
    upkeep.look()
    # Half of the scorer's queue, so that requests find room in it.
    assert len(offered) == 2
    upkeep.look()
    assert sorted(record.outcome.request_id for record, _ in offered) == ["r0", "r1", "r2"]


async def test_what_is_too_old_is_removed(open_store: OpenStore, clock: Clock) -> None:
    store = open_store()
    store.write([Entry(record_of(finished_s=clock.now_s - 1001.0)), Entry(record_of(finished_s=clock.now_s))])
    EvaluationUpkeep(store, lambda *_: None, CONFIG).look()
    assert store.trim(max_age_s=0.0, max_num=0) == 1


async def test_database_that_is_away_is_tried_again(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    looks: list[float] = []

    def claim(**_limits: object) -> list[tuple[Record, tuple[str, ...]]]:
        looks.append(time.monotonic())
        if len(looks) < 3:
            raise StoreError("away") if len(looks) == 1 else RuntimeError("ours")
        return []

    monkeypatch.setattr(store, "claim", claim)
    upkeep = EvaluationUpkeep(store, lambda *_: None, CONFIG)
    upkeep.start()
    async with asyncio.timeout(5):
        while len(looks) < 4:  # noqa: ASYNC110 - the upkeep is another thread
            await asyncio.sleep(0.01)
    await upkeep.stop()
    num_looks = len(looks)
    await asyncio.sleep(0.05)
    assert len(looks) == num_looks
