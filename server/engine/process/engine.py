"""The server's side: the engine's face, while the engine itself is in another process.

What can be refused is refused here, out of what the other side said at its start and says with every step; so callers
see what they would see of the engine itself. When the process dies, every open request ends, and the supervisor starts
another; until that is up, with the pinned adapters, requests are refused. All of it is on the event loop's thread.
"""

import asyncio
import itertools
import logging
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from adapters.errors import AdapterError
from server.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    MedleyError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.engine.base import Engine, EngineInfo, EngineOutput, EngineRequest, EngineStats, ResolvedAdapter
from server.engine.limits import check_request
from server.engine.process import wire
from server.engine.process.launch import EngineProcess, Launcher
from server.engine.process.tally import Tally
from server.engine.streams import OutputStream
from server.engine.supervisor import BackOff, Supervisor
from server.engine.waiting import Place, WaitingCounts, place_of

_log = logging.getLogger(__name__)

# How long an engine may take to end what it was told to abort, before it is done without.
_ABORT_S = 10.0


@dataclass(slots=True)
class _Open:
    """An open request.

    Attributes:
        request_id: Its id.
        place: What it takes in the queue.
        stream: Its outputs.
        has_begun: Whether there were any.
    """

    request_id: str
    place: Place
    stream: OutputStream
    has_begun: bool = False


class ProcessEngine(Engine):
    """An engine in a process of its own.

    Args:
        make: Makes the engine, not started; called in the other process, so it must be something that can be pickled:
            a module's function or class, perhaps as a partial.
        back_off: How long to wait before a process that died is started again.
    """

    def __init__(self, make: Callable[[], Engine], back_off: BackOff | None = None) -> None:
        """Start nothing; :meth:`start` does."""
        self._launcher = Launcher(pickle.dumps(make))
        self._supervisor = Supervisor[EngineProcess](
            self._launch,
            went_up=self._went_up,
            went_down=self._went_down,
            abandon=self._launcher.abandon,
            back_off=back_off or BackOff(),
        )
        self._process: EngineProcess | None = None
        self._end: UnavailableError | None = UnavailableError("the engine has not started")
        self._info: EngineInfo | None = None
        self._numbers = itertools.count()
        self._open: dict[int, _Open] = {}
        self._keys: dict[str, int] = {}
        self._waiting = WaitingCounts(0)
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._pinned: dict[str, ResolvedAdapter] = {}
        self._restoring: asyncio.Task[None] | None = None
        self._tally = Tally()
        self._is_draining = self._has_stopped = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def info(self) -> EngineInfo:
        """What the engine is; valid after :meth:`start`."""
        assert self._info is not None
        return self._info

    @property
    def pid(self) -> int | None:
        """Number of the engine's process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process and wait until its engine has started.

        Raises:
            MedleyError: If it cannot be; what the engine itself would raise.
        """
        await self._supervisor.start()
        if self._has_stopped:
            await self._supervisor.stop()
            raise UnavailableError("the engine was stopped while it was starting")

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs, which end with exactly one terminal output.

        Raises:
            InvalidArgumentError: If it is beyond the engine's limits.
            ResourceExhaustedError: If the queue is full.
            DeadlineExceededError: If others wait, and the answer would come after its deadline.
            UnavailableError: If the engine is draining or dead.
            AlreadyExistsError: If the request id is in flight.
        """
        process = self._require_alive()
        if self._is_draining:
            raise UnavailableError("the engine is draining")
        if request.request_id in self._keys:
            raise AlreadyExistsError(f"request {request.request_id} is in flight", param="request_id")
        check_request(self.info, request)
        # What runs is what was last told: never more than runs, waits to be read here or is on the way. So the queue
        # over there is never longer than the one that is counted here, and never has to refuse. Who gives way in a full
        # one is that queue's to say; here it is known whether anybody will.
        place = place_of(request)
        num_free = self.info.max_num_seqs - self._num_running
        self._waiting.check_in_time(request, self._tally.pace, time.monotonic(), num_free)
        if self._num_waiting >= self.info.max_num_waiting:
            self._waiting.displaced_by(place)
        self._waiting.count(place)
        key = next(self._numbers)
        opened = _Open(request.request_id, place, OutputStream(partial(self._abort, key)))
        self._open[key] = opened
        self._keys[request.request_id] = key
        self._is_idle.clear()
        process.send(wire.Submit(key, request))
        return opened.stream

    def abort(self, request_id: str) -> None:
        """End a request with ``abort`` at the next step; unknown ids are ignored."""
        if request_id in self._keys:
            self._abort(self._keys[request_id])

    async def check_adapter(self, adapter: ResolvedAdapter) -> None:
        """Run an adapter once on a short input, beside running requests.

        Raises:
            InvalidAdapterError: If its files do not fit or its logits are not finite.
            AdapterError: What else the engine raises.
            UnavailableError: If the engine is not running.
        """
        await self._call(self._require_alive(), "check_adapter", adapter)

    async def pin_adapter(self, adapter: ResolvedAdapter) -> None:
        """Load an adapter now and keep it resident until :meth:`unpin_adapter`, also through the process's death.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
            MedleyError: If it cannot be loaded.
        """
        await self._call(self._require_alive(), "pin_adapter", adapter)
        self._pinned[adapter.digest] = adapter

    def unpin_adapter(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        self._pinned.pop(digest, None)
        if self._process is not None:
            self._process.send(wire.Unpin(digest))

    def stats(self) -> EngineStats:
        """Return a snapshot; cheap, safe to call often."""
        tally = self._tally
        levels = {**tally.levels, "num_running": self._num_running}
        return EngineStats(
            alive=self._end is None,
            is_restarting=self._end is not None and self._supervisor.is_running,
            num_waiting=self._num_waiting,
            resident=tally.resident,
            adapter_load_times=tally.load_times,
            pace=tally.pace,
            **levels,
            **tally.counters,
        )

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, finish the running ones, abort what is left after ``grace_s`` seconds."""
        self._is_draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), grace_s)
            return
        for key in self._open:
            self._abort(key)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), _ABORT_S)
            return
        self._end_all(EngineOutput(finish_reason=FinishReason.ABORT))

    async def stop(self) -> None:
        """End the process; every open request gets its terminal output."""
        self._has_stopped = True
        self._end = UnavailableError("the engine has stopped")
        self._launcher.abandon()
        self._forget(EngineOutput(finish_reason=FinishReason.ABORT, error=self._end), self._end)
        await self._supervisor.stop()

    def _launch(self) -> EngineProcess:
        """Start a process. A worker thread."""
        process = self._launcher.launch()
        if self._info is not None and self._info != process.info:
            process.shutdown()
            raise FailedPreconditionError("the base is no longer what it was when the server started; restart it")
        return process

    def _went_up(self, process: EngineProcess) -> None:
        """Begin to serve with a process, once it has the pinned adapters."""
        if self._has_stopped:
            return
        self._process, self._info = process, process.info
        self._waiting = WaitingCounts(process.info.max_num_waiting, process.info.max_wait_s)
        process.received = self._take
        if self._pinned:
            self._restoring = asyncio.get_running_loop().create_task(self._restore(process))
        else:
            self._end = None

    async def _restore(self, process: EngineProcess) -> None:
        """Pin again what was pinned, then serve."""
        for adapter in tuple(self._pinned.values()):
            try:
                await self._call(process, "pin_adapter", adapter)
            except (MedleyError, AdapterError) as error:
                if self._process is not process:
                    return  # it died meanwhile; the next one is given them all
                _log.error("adapter %s is not pinned any more: %s", adapter.digest, error.message)
                self._pinned.pop(adapter.digest, None)
        if self._process is process:
            self._end = None

    def _went_down(self) -> None:
        """End what was open in a process that died."""
        if self._has_stopped:
            return
        self._end = UnavailableError("the engine died and is being started again; try again in a while")
        self._forget(EngineOutput(finish_reason=FinishReason.ERROR, error=self._end), self._end)

    def _forget(self, output: EngineOutput, error: UnavailableError) -> None:
        self._process = None
        self._tally.died()
        self._end_all(output)
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(error)

    def _end_all(self, output: EngineOutput) -> None:
        """End every open request here; what may still be reported of it is passed over."""
        for opened in self._open.values():
            opened.stream.put(output)
        self._open.clear()
        self._keys.clear()
        self._waiting = self._waiting.emptied()
        self._is_idle.set()

    def _take(self, report: wire.Report) -> None:
        """Take what the process reports, once a step."""
        self._tally.take(report)
        for packed in report.outputs:
            opened = self._open.get(packed[0])
            if opened is None:
                continue
            output = wire.unpack(packed)
            if not opened.has_begun:
                opened.has_begun = True
                self._waiting.leave(opened.place)
            opened.stream.put(output)
            if output.finish_reason is not None:
                del self._open[packed[0]]
                del self._keys[opened.request_id]
        if not self._open:
            self._is_idle.set()
        for number, error in report.answers:
            self._answer(number, error)

    def _answer(self, number: int, error: MedleyError | AdapterError | None) -> None:
        waiting = self._calls.get(number)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    async def _call(self, process: EngineProcess, method: str, adapter: ResolvedAdapter) -> None:
        """Have the engine do something with an adapter, and wait until it has."""
        number = next(self._numbers)
        waiting = self._calls[number] = asyncio.get_running_loop().create_future()
        process.send(wire.Call(number, method, adapter))
        try:
            await waiting
        finally:
            del self._calls[number]

    def _abort(self, key: int) -> None:
        if key in self._open and self._process is not None:
            self._process.send(wire.Abort(key))

    @property
    def _num_running(self) -> int:
        return min(self._tally.num_running, len(self._open))

    @property
    def _num_waiting(self) -> int:
        """Requests that wait over there, or are on their way."""
        return len(self._open) - self._num_running

    def _require_alive(self) -> EngineProcess:
        if self._end is not None:
            raise self._end
        assert self._process is not None
        return self._process
