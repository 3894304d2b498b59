"""Writes what ended, on one thread behind a bounded queue; what does not fit is dropped and counted.

Nothing here makes a request wait: recording is a ``put_nowait``. Whoever needs to know that something is on disk asks
for a future. Many requests go into one transaction. Where somebody waits it is made at once, unless the last one is a
moment ago only: a transaction takes more of the processor than what is in it, which the answers being made need.

:meth:`Recorder.record`, :meth:`Recorder.save` and :meth:`Recorder.flush` may be called from any thread.
"""

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from adapters.errors import StoreError
from adapters.scoring.signals import MAX_SOURCE_CHARS
from server.core.errors import ResourceExhaustedError, UnavailableError
from server.evaluation.outcome import OK
from server.evaluation.records import Entry, Record
from server.evaluation.reference_sets import ReferenceSets
from server.evaluation.store import EvaluationStore
from server.observability.metrics import Metrics

_log = logging.getLogger(__name__)

Signals = Callable[[str, str], Mapping[str, float]]
Found = Callable[[Record, tuple[str, ...]], None]

_MAX_NUM_TOGETHER = 256
_GATHER_S = 0.2
# Between two transactions that somebody waits for.
_PAUSE_S = 0.05
_RETRY_S = 1.0
# What a repeat may help against: a database that is away, or busy.
_MAY_PASS = (OperationalError, InterfaceError, PoolTimeoutError, OSError)


@dataclass(slots=True)
class _Write:
    """Something to write; or nothing, where somebody only wants to know that all before it is."""

    entry: Entry | None
    source: str = ""
    done: "Future[None] | None" = None


class Recorder:
    """One thread that writes.

    Args:
        store: Where to.
        sets: References that wait for requests by their input.
        signals: Makes an answer's signals of the answer and what it was made of; called on the recorder's thread.
        max_num_unwritten: Most requests that wait to be written.
        metrics: Where drops are counted.
    """

    def __init__(
        self,
        store: EvaluationStore,
        sets: ReferenceSets,
        *,
        signals: Signals,
        max_num_unwritten: int,
        metrics: Metrics,
    ) -> None:
        """Start nothing; :meth:`start` does."""
        self._store = store
        self._sets = sets
        self._signals = signals
        self._metrics = metrics
        self._found: Found = lambda _record, _references: None
        self._writes: queue.Queue[_Write | None] = queue.Queue(max_num_unwritten)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._is_lost = False
        self._last_gathered_s = -math.inf

    def start(self, found: Found) -> None:
        """Start writing.

        Args:
            found: Called on the recorder's thread with a request and the references a set has for it; must not wait.
        """
        self._found = found
        self._thread = threading.Thread(target=self._work, name="evaluation-recorder", daemon=True)
        self._thread.start()

    def record(self, record: Record, source: str, references: Sequence[str] = ()) -> None:
        """Have a request written when there is time; where the queue is full it is dropped and counted.

        Args:
            record: The request.
            source: What its answer was made of, for its signals; it is not kept.
            references: To be scored yet.
        """
        # A log line for each would be one more thing to do for a server that has too much to do; they are counted.
        with contextlib.suppress(ResourceExhaustedError, UnavailableError):
            self._put(_Write(Entry(record, references=tuple(references)), source[:MAX_SOURCE_CHARS]))

    def save(
        self, record: Record, references: Sequence[str], scores: Mapping[str, float] | None = None
    ) -> "Future[None]":
        """Have references or scores written at once; the future is done when they are on disk.

        It ends with ``UnavailableError`` where they cannot be written.

        Raises:
            ResourceExhaustedError: If too many requests wait to be written; the drop is counted.
            UnavailableError: If the server is stopping.
        """
        done: Future[None] = Future()
        self._put(_Write(Entry(record, references=tuple(references), scores=scores), done=done))
        return done

    def flush(self) -> "Future[None]":
        """Return a future that is done when all that was handed over before is written.

        Raises:
            ResourceExhaustedError: If too many requests wait to be written.
            UnavailableError: If the server is stopping.
        """
        done: Future[None] = Future()
        self._put(_Write(None, done=done))
        return done

    async def stop(self) -> None:
        """Write what waits, as far as the database takes it, and stop."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        await asyncio.to_thread(self._writes.put, None)
        await asyncio.to_thread(thread.join)

    def _put(self, write: _Write) -> None:
        if self._stopping.is_set():
            self._drop(write, "stopping")
            raise UnavailableError("the server is stopping")
        try:
            self._writes.put_nowait(write)
        except queue.Full:
            self._drop(write, "unwritten")
            raise ResourceExhaustedError("too many requests wait to be written; try again later") from None

    def _drop(self, write: _Write, reason: str) -> None:
        if write.entry is not None:
            self._metrics.evaluation_dropped.labels(reason=reason).inc()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            writes, is_last = self._gather()
            try:
                self._write(writes)
            except Exception:
                # A fault of ours in one batch must not end all recording.
                _log.exception("recording failed")
                self._give_up(writes, "failed")

    def _gather(self) -> tuple[list[_Write], bool]:
        """Return what to write next, and whether nothing comes after it; wait for more as long as nobody minds."""
        writes, is_last = list[_Write](), False
        write = self._writes.get()
        until_s = time.monotonic() + _GATHER_S
        while write is not None:
            writes.append(write)
            if write.done is not None:
                until_s = min(until_s, self._last_gathered_s + _PAUSE_S)
            wait_s = until_s - time.monotonic()
            if len(writes) == _MAX_NUM_TOGETHER:
                break
            try:
                write = self._writes.get(timeout=wait_s) if wait_s > 0.0 else self._writes.get_nowait()
            except queue.Empty:
                break
        else:
            is_last = True
        self._last_gathered_s = time.monotonic()
        return writes, is_last

    def _write(self, writes: list[_Write]) -> None:
        entries = [self._complete(write) for write in writes if write.entry is not None]
        while not self._is_lost:
            try:
                self._store.write(entries)
                break
            except StoreError as error:
                if not isinstance(error.__cause__, _MAY_PASS):
                    self._write_each(writes)
                    return
                waited_for = [write for write in writes if write.done is not None]
                self._give_up(waited_for, "database")
                writes = [write for write in writes if write.done is None]
                entries = [write.entry for write in writes if write.entry is not None]
                # At the end there is one try, not one for each batch.
                self._is_lost = self._stopping.is_set()
                _log.warning("evaluation cannot be written now: %s", error.message)
                self._stopping.wait(_RETRY_S)
        if self._is_lost:
            self._give_up(writes, "database")
            return
        for write in writes:
            _end(write)
        self._look_in_sets(entries)

    def _write_each(self, writes: Sequence[_Write]) -> None:
        """Write one by one what the database does not take together, so that one bad entry is lost alone."""
        for write in writes:
            try:
                self._store.write([write.entry] if write.entry is not None else [])
                _end(write)
            except StoreError:
                _log.exception("an ended request was not recorded")
                self._give_up([write], "database")

    def _give_up(self, writes: Sequence[_Write], reason: str) -> None:
        for write in writes:
            self._drop(write, reason)
            _end(write, UnavailableError("the evaluation cannot be written now; try again later"))

    def _complete(self, write: _Write) -> Entry:
        """Return an entry with the signals of its answer."""
        entry = write.entry
        assert entry is not None
        outcome = entry.record.outcome
        if write.source and outcome.text:
            write.entry = entry = Entry(
                entry.record, self._signals(outcome.text, write.source), entry.references, entry.scores
            )
        return entry

    def _look_in_sets(self, entries: Sequence[Entry]) -> None:
        lonely = [entry.record for entry in entries if not entry.references and entry.record.outcome.code == OK]
        try:
            for record, references in self._sets.matching(lonely):
                self._found(record, references)
        except StoreError as error:
            _log.warning("reference sets cannot be read now: %s", error.message)


def _end(write: _Write, error: Exception | None = None) -> None:
    if write.done is None or not write.done.set_running_or_notify_cancel():
        return
    if error is None:
        write.done.set_result(None)
    else:
        write.done.set_exception(error)
