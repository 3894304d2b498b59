"""The loop of the step thread: take what was posted, schedule, execute, hand back.

Everything that touches rows, slots or tensors happens here, on one thread; other threads post calls, which run between
steps. Knows no asyncio: what a step has to say goes to ``deliver`` in one list.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Protocol

from adapters.manifest import AdapterRole
from server.core.errors import DeadlineExceededError, InternalError, MedleyError, ResourceExhaustedError
from server.core.outputs import FinishReason
from server.engine.base import EngineOutput, EngineStats, ResolvedAdapter
from server.engine.loading_error import loading_error
from server.engine.native.adapter_payload import AdapterPayload
from server.engine.native.adapter_slots import ResidentAdapters
from server.engine.native.adapter_tiers import AdapterTiers
from server.engine.native.batch import Batch, Row, StepOutput
from server.engine.native.scheduler import RowOutput, Scheduler
from server.engine.pace import Pace, PaceMeter
from server.engine.waiting import Place, WaitingCounts, gave_way, place_of

_log = logging.getLogger(__name__)

# An idle loop begins once nothing new came for so long, or so much has passed since the first.
_QUIET_S = 0.0005
_LONGEST_GATHERING_S = 0.005

# Rows of the queue whose adapters are brought up ahead of their turn: enough for a few steps' joins, few enough that a
# row whose turn has come does not wait long behind them.
_NUM_PREFETCHED_ROWS = 8

# How old the figures of the pace may be; to make and send them takes longer than to measure.
_PACE_AGE_S = 0.1

# Ends that say how long answers are.
_COUNTED = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE})

Outputs = Sequence[tuple[str, EngineOutput]]


def new_future() -> Future:
    """Return a future that its waiter cannot cancel, so that the step thread may always set it."""
    future: Future = Future()
    future.set_running_or_notify_cancel()
    return future


class Executes(Protocol):
    """What the loop needs of a runner."""

    def execute(self, batch: Batch) -> StepOutput:
        """Run one step."""
        ...

    def reset(self) -> None:
        """Forget everything, after a step that broke in the middle."""
        ...


class StepLoop:
    """Steps until told to stop.

    Args:
        scheduler: Who runs.
        num_slots: Adapter slots by role.
        tiers: Where adapters come from.
        executor: Where adapters are loaded.
        deliver: Takes the outputs of a step; called on the step thread.
        max_num_waiting: Most rows in the queue.
        max_wait_s: Longest wait there that a row may have to expect; 0 for any.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        num_slots: Mapping[AdapterRole, int],
        tiers: AdapterTiers[AdapterPayload],
        executor: Executor,
        deliver: Callable[[Outputs], None],
        max_num_waiting: int,
        max_wait_s: float = 0.0,
    ) -> None:
        self._scheduler = scheduler
        self._tiers, self._executor, self._deliver = tiers, executor, deliver
        self._max_num_waiting = max_num_waiting
        self._waiting = WaitingCounts(max_num_waiting, max_wait_s)
        self.adapters: ResidentAdapters[AdapterPayload] = ResidentAdapters(num_slots, self._begin_load, tiers.gave_up)
        self._condition = threading.Condition()
        self._posted: list[Callable[[], None]] = []
        self._is_stopping = False
        self._outbox: list[tuple[str, EngineOutput]] = []
        self._pin_waiters: dict[str, list[Future[None]]] = {}
        self._num_steps = self._num_generated_tokens = 0
        self._meter = PaceMeter()
        self._pace: Pace | None = None
        self._pace_due_s = 0.0
        self._last_step: tuple[float, int] | None = None
        self.stats = EngineStats(alive=True, num_waiting=0, num_running=0)

    def add(self, row: Row) -> None:
        """Queue a row; where the queue is full, in the place of whoever has to give way. Any thread.

        Raises:
            ResourceExhaustedError: If the queue is full, and nobody gives way.
            DeadlineExceededError: If others wait, and the row would end after its deadline.
        """
        with self._condition:
            num_free = self._scheduler.max_num_seqs - self.stats.num_running
            self._waiting.check_in_time(row.request, self.stats.pace, row.arrival_s, num_free)
            displaced = self._waiting.enter(place_of(row.request))
        if displaced is not None:
            self.post(lambda: self._displace(displaced))
        self.post(lambda: self._scheduler.add(row))

    def abort(self, request_id: str) -> None:
        """End a request at the next step. Any thread."""
        self.post(lambda: self._end(lambda row: row.request.request_id == request_id, FinishReason.ABORT))

    def pin(self, adapter: ResolvedAdapter) -> "Future[None]":
        """Load and pin an adapter; the future is done once it is resident. Any thread."""
        future: Future[None] = new_future()
        self.post(lambda: self._pin(adapter, future))
        return future

    def unpin(self, digest: str) -> None:
        """Let a pinned adapter be evicted again. Any thread."""
        self.post(lambda: self.adapters.unpin(digest))

    def post(self, call: Callable[[], None]) -> None:
        """Have a call made between two steps. Any thread."""
        with self._condition:
            self._posted.append(call)
            self._condition.notify()

    def stop(self) -> None:
        """Make :meth:`run` return after the present step. Any thread."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()

    def run(self, runner: Executes) -> None:
        """Step until stopped; an exception here is the engine's death. Step thread."""
        is_busy = False
        try:
            while (calls := self._take(wait=not is_busy)) is not None:
                for call in calls:
                    call()
                is_busy = self._step(runner)
                self._hand_back()
        finally:
            self._publish(alive=False)

    def _take(self, *, wait: bool) -> list[Callable[[], None]] | None:
        """Return what was posted, waiting for it if there is nothing else to do; None once stopped."""
        with self._condition:
            if wait and not self._posted and not self._is_stopping:
                self._condition.wait(self._time_to_deadline_s())
                self._gather()
            calls, self._posted = self._posted, []
            return None if self._is_stopping else calls

    def _gather(self) -> None:
        """Let what comes together start together: a row that starts alone makes the rest of its burst wait."""
        latest_s = time.monotonic() + _LONGEST_GATHERING_S
        while self._posted and not self._is_stopping and time.monotonic() < latest_s:
            if not self._condition.wait(_QUIET_S):
                return

    def _time_to_deadline_s(self) -> float | None:
        deadlines = [row.request.deadline_s for row in self._scheduler.rows() if row.request.deadline_s is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _step(self, runner: Executes) -> bool:
        """Run one step; return whether there was a batch."""
        now_s = time.monotonic()
        self._measure(now_s)
        self._finish(self._scheduler.expire(now_s))
        self.adapters.begin_pass()
        batch = self._scheduler.schedule(partial(self._admit, now_s=now_s), now_s)
        self._leave_queue(batch.started)
        self._prefetch()
        if not batch.rows:
            return False
        self._last_step = now_s, len(batch.started)
        try:
            output = runner.execute(batch)
        except Exception:
            error = InternalError("the engine failed while working on this request; send it again")
            ended = self._scheduler.end(batch.touched_rows, FinishReason.ERROR, error)
            _log.exception("a step failed; its %d requests end with an error", len(ended))
            runner.reset()
            self._finish(ended)
            return True
        self._num_steps += 1
        self._finish(self._scheduler.update(batch, output))
        if batch.num_new:
            ended_s = time.monotonic()
            for row in batch.new_rows:
                self._meter.begun(ended_s - row.started_s)
        return True

    def _measure(self, now_s: float) -> None:
        """Take note of the step that ends with this one's beginning."""
        if self._last_step is not None:
            begun_s, num_started = self._last_step
            self._meter.stepped(now_s - begun_s, num_started, is_room_short=self._scheduler.is_room_short)
            self._last_step = None
        if now_s >= self._pace_due_s:
            self._pace, self._pace_due_s = self._meter.pace, now_s + _PACE_AGE_S

    def _admit(self, row: Row, now_s: float) -> bool:
        try:
            # Only if others would take its place; it was taken off the queue itself.
            if row.request.deadline_s is not None and self._pace is not None and self._scheduler.num_startable:
                self._pace.check_starting(row.request.deadline_s - now_s, row.num_tokens_left)
            return self.adapters.admit(row)
        except ResourceExhaustedError as error:
            self._finish(self._scheduler.end([row], FinishReason.ERROR, error))
        except DeadlineExceededError as error:
            self._finish(self._scheduler.end([row], FinishReason.DEADLINE, error))
        return False

    def _finish(self, outputs: Sequence[RowOutput]) -> None:
        for row, output in outputs:
            self._outbox.append((row.request.request_id, output))
            self._num_generated_tokens += len(output.token_ids)
            if output.finish_reason is not None:
                self.adapters.release(row)
                if row.queue_s is None:
                    self._leave_queue([row])
                elif output.finish_reason in _COUNTED:
                    self._meter.ended(len(row.token_ids), is_whole=output.finish_reason is not FinishReason.DEADLINE)

    def _leave_queue(self, rows: Sequence[Row]) -> None:
        if rows:
            with self._condition:
                for row in rows:
                    self._waiting.leave(place_of(row.request))

    def _displace(self, place: Place) -> None:
        with self._condition:
            self._waiting.count(place)
        # None where all that were there have started or ended meanwhile, which made room as well.
        row = self._scheduler.newest_waiting(*place)
        if row is not None:
            self._finish(self._scheduler.end([row], FinishReason.ERROR, gave_way(self._max_num_waiting)))

    def _end(self, chosen: Callable[[Row], bool], reason: FinishReason, error: MedleyError | None = None) -> None:
        self._finish(self._scheduler.end([row for row in self._scheduler.rows() if chosen(row)], reason, error))

    def _pin(self, adapter: ResolvedAdapter, future: "Future[None]") -> None:
        try:
            if self.adapters.pin(adapter):
                future.set_result(None)
            else:
                self._pin_waiters.setdefault(adapter.digest, []).append(future)
        except ResourceExhaustedError as error:
            future.set_exception(error)

    def _prefetch(self) -> None:
        """Bring up the adapters of the rows next in the queue, once for each row."""
        rows = self._scheduler.next_waiting(_NUM_PREFETCHED_ROWS)
        if all(row.is_prefetched for row in rows):
            return
        for row in rows:
            row.is_prefetched = True
        for adapter in self.adapters.prefetch(rows):
            if adapter.digest not in self._tiers.host:
                # A failure here is told by the load at the row's turn.
                self._executor.submit(self._tiers.fetch, adapter)

    def _begin_load(self, adapter: ResolvedAdapter) -> None:
        payload = self._tiers.at_once(adapter)
        if payload is not None:
            self.adapters.loaded(adapter, payload)
            return
        loading = self._executor.submit(self._tiers.load, adapter)
        loading.add_done_callback(lambda done: self.post(lambda: self._end_load(adapter, done)))

    def _end_load(self, adapter: ResolvedAdapter, done: "Future[AdapterPayload]") -> None:
        waiters = self._pin_waiters.pop(adapter.digest, [])
        failure = done.exception()
        if failure is None:
            self.adapters.loaded(adapter, done.result())
            for waiter in waiters:
                waiter.set_result(None)
            return
        error = loading_error(failure)
        _log.warning("adapter %s could not be loaded: %s", adapter.digest, error.message, exc_info=failure)
        self.adapters.failed(adapter)
        self._end(lambda row: adapter in row.adapters, FinishReason.ERROR, error)
        for waiter in waiters:
            waiter.set_exception(error)

    def _hand_back(self) -> None:
        self._publish(alive=True)
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._deliver(outbox)

    def _publish(self, *, alive: bool) -> None:
        self.stats = EngineStats(
            alive=alive,
            num_waiting=self._waiting.num,
            num_running=self._scheduler.num_running,
            resident=self.adapters.resident,
            num_adapter_loads=self.adapters.num_loads,
            num_adapter_evictions=self.adapters.num_evictions,
            num_adapter_host_hits=self._tiers.host.num_hits,
            num_adapter_host_bytes=self._tiers.host.num_bytes,
            adapter_load_times=self._tiers.load_times.counted,
            num_steps=self._num_steps,
            num_generated_tokens=self._num_generated_tokens,
            pace=self._pace,
        )
