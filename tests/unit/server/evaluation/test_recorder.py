"""The writer: never in the way, in batches, and nothing lost that somebody was told of."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import DataError, OperationalError

from adapters.errors import StoreError
from adapters.scoring.signals import MAX_SOURCE_CHARS
from server.core.errors import ResourceExhaustedError, UnavailableError
from server.core.principal import anonymous
from server.evaluation import recorder as recorder_module
from server.evaluation.recorder import Recorder
from server.evaluation.records import Entry, Record
from server.evaluation.reference_sets import ReferenceSets
from server.evaluation.store import EvaluationStore
from server.observability.metrics import Metrics
from tests.fixtures.outcomes import outcome_of, record_of


class GatedStore(EvaluationStore):
    """Writes when its gate is open, and fails as it is told to; keeps what it was asked to write."""

    def __init__(self, url: str, *, store_texts: bool = True) -> None:
        super().__init__(url, store_texts=store_texts)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[Sequence[Entry]] = []
        self.failures: list[Exception] = []
        self.refused: set[str] = set()

    def write(self, entries: Sequence[Entry]) -> None:
        self.entered.set()
        assert self.gate.wait(20)
        if self.failures:
            raise StoreError("the database cannot be used now") from self.failures.pop(0)
        if self.refused & {entry.record.outcome.request_id for entry in entries}:
            raise StoreError("the database cannot be used now") from DataError("insert", {}, Exception())
        self.batches.append(entries)
        super().write(entries)

    @property
    def written(self) -> list[str]:
        return [entry.record.outcome.request_id for entries in self.batches for entry in entries]


class Room:
    """A recorder on a store with a gate."""

    def __init__(self, folder: Path, max_num_unwritten: int) -> None:
        self.store = GatedStore(f"sqlite:///{folder / 'registry.db'}")
        self.sets = ReferenceSets(self.store)
        self.metrics = Metrics()
        self.found: list[tuple[Record, tuple[str, ...]]] = []
        self.sources: list[str] = []
        self.recorder = Recorder(
            self.store, self.sets, signals=self._signals, max_num_unwritten=max_num_unwritten, metrics=self.metrics
        )
        self.recorder.start(lambda record, references: self.found.append((record, references)))

    def _signals(self, prediction: str, source: str) -> dict[str, float]:
        self.sources.append(source)
        return {"length": float(len(prediction))}

    def dropped(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value("medley_evaluation_dropped_total", {"reason": reason})
        return value or 0.0

    async def flush(self) -> None:
        await asyncio.wait_for(asyncio.wrap_future(self.recorder.flush()), 10)


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(recorder_module, "_RETRY_S", 0.01)
    made = Room(tmp_path, max_num_unwritten=4)
    yield made
    made.store.gate.set()
    await made.recorder.stop()
    made.store.close()


def away() -> Exception:
    return OperationalError("insert", {}, Exception())


async def test_recorded_request_is_written_with_its_signals(room: Room) -> None:
    room.recorder.record(record_of(text="four"), "the source")
    await room.flush()
    [[entry]] = room.store.batches
    assert (entry.signals, room.sources) == ({"length": 4.0}, ["the source"])


async def test_requests_that_come_together_are_written_together(room: Room) -> None:
    for number in range(3):
        room.recorder.record(record_of(request_id=f"r{number}"), "source")
    await room.flush()
    assert [len(batch) for batch in room.store.batches] == [3]


async def test_saving_does_not_wait_for_more_to_come(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_GATHER_S", 60.0)
    async with asyncio.timeout(20):
        for name in ("first", "second"):
            await asyncio.wrap_future(room.recorder.save(record_of(request_id=name), ["x"], {"rouge1": 1.0}))
    assert room.store.written == ["first", "second"]


async def test_savings_right_after_one_another_are_written_together(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_GATHER_S", 60.0)
    monkeypatch.setattr(recorder_module, "_PAUSE_S", 3.0)
    await asyncio.wrap_future(room.recorder.save(record_of(request_id="first"), ["x"], {"rouge1": 1.0}))
    saving = []
    for number in range(3):
        saving.append(room.recorder.save(record_of(request_id=f"r{number}"), ["x"], {"rouge1": 1.0}))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(20):
        await asyncio.gather(*map(asyncio.wrap_future, saving))
    assert [len(batch) for batch in room.store.batches] == [1, 3]


async def test_full_queue_drops_and_counts_and_never_waits(room: Room) -> None:
    room.store.gate.clear()
    room.recorder.record(record_of(request_id="first"), "")
    assert await asyncio.to_thread(room.store.entered.wait, 5)
    begun_s = time.monotonic()
    for number in range(10):
        room.recorder.record(record_of(request_id=f"r{number}"), "")
    with pytest.raises(ResourceExhaustedError):
        room.recorder.save(record_of(), ["x"])
    assert time.monotonic() - begun_s < 5
    assert room.dropped("unwritten") == 7
    room.store.gate.set()
    async with asyncio.timeout(5):
        while len(room.store.written) < 5:  # noqa: ASYNC110 - the writer is another thread
            await asyncio.sleep(0.01)
    assert room.store.written == ["first", "r0", "r1", "r2", "r3"]


async def test_database_that_is_away_costs_no_record_but_whoever_waits_is_told(room: Room) -> None:
    room.store.failures = [away(), away()]
    room.store.gate.clear()
    room.recorder.record(record_of(request_id="kept"), "")
    saving = room.recorder.save(record_of(request_id="told"), ["x"], {"rouge1": 1.0})
    room.store.gate.set()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(asyncio.wrap_future(saving), 5)
    await room.flush()
    assert room.store.written == ["kept"]
    assert room.dropped("database") == 1


async def test_entry_that_the_database_refuses_is_lost_alone(room: Room) -> None:
    room.store.refused = {"bad"}
    room.store.gate.clear()
    for request_id in ("a", "bad", "b"):
        room.recorder.record(record_of(request_id=request_id), "")
    room.store.gate.set()
    await room.flush()
    assert room.store.written == ["a", "b"]
    assert room.dropped("database") == 1


async def test_fault_in_one_batch_does_not_end_recording(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(room.recorder, "_signals", lambda *_: 1 / 0)
        room.recorder.record(record_of(request_id="lost"), "source")
        with pytest.raises(UnavailableError):
            await room.flush()
    room.recorder.record(record_of(request_id="kept"), "source")
    await room.flush()
    assert room.store.written == ["kept"]
    assert room.dropped("failed") == 1


async def test_stop_writes_what_waits(room: Room) -> None:
    for number in range(4):
        room.recorder.record(record_of(request_id=f"r{number}"), "")
    await room.recorder.stop()
    assert room.store.written == ["r0", "r1", "r2", "r3"]
    room.recorder.record(record_of(request_id="late"), "")
    with pytest.raises(UnavailableError):
        room.recorder.save(record_of(), ["x"])
    assert room.dropped("stopping") == 2


async def test_stop_gives_up_on_a_database_that_is_away(room: Room) -> None:
    room.store.failures = [away() for _ in range(1000)]
    for number in range(4):
        room.recorder.record(record_of(request_id=f"r{number}"), "")
    async with asyncio.timeout(5):
        await room.recorder.stop()
    assert room.dropped("database") == 4


async def test_request_whose_input_is_in_a_set_is_found_a_reference(room: Room) -> None:
    room.sets.put(anonymous(), "gold", {outcome_of().input_sha256: ["a room for friday"]})
    good, failed = record_of(), record_of(code="INTERNAL", text="")
    room.recorder.record(good, "")
    room.recorder.record(failed, "")
    room.recorder.record(record_of(), "", ["its own reference"])
    await room.recorder.stop()
    assert room.found == [(good, ("a room for friday",))]


async def test_only_the_beginning_of_a_long_source_is_held(room: Room) -> None:
    room.recorder.record(record_of(), "x" * (10 * MAX_SOURCE_CHARS))
    await room.flush()
    assert [len(source) for source in room.sources] == [MAX_SOURCE_CHARS]
