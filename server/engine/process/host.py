"""The engine's side: makes the engine, hands it what the server sends, and reports once a step.

Event loop's thread, that of the engine's own process. When the server is gone, so is this process; when the engine
dies, it ends, too, and the server starts another.
"""

import asyncio
import gc
import logging
import os
import pickle
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from adapters.errors import AdapterError
from server.core.errors import InternalError, MedleyError
from server.core.outputs import FinishReason
from server.engine.base import Engine, EngineOutput, EngineRequest, EngineStats
from server.engine.process import wire
from server.observability.durations import DurationCounts
from server.observability.logging import LogConfig, configure_logging

_log = logging.getLogger(__name__)

# How long what no output tells of may go untold, as that an adapter was brought up.
_LOOK_S = 0.05
# How long tokens that nobody waits for one by one are held: a message costs both processes more than what is in it.
_HOLD_S = 0.02
_STOP_S = 5.0


def run_host(descriptor: int) -> NoReturn:
    """Serve the other end of a socket, until that is closed.

    Args:
        descriptor: The socket.
    """
    asyncio.run(_EngineHost().serve(socket.socket(fileno=descriptor)))
    raise AssertionError("the host ends by ending its process")


class _EngineHost:
    """One engine, and the socket to the server."""

    def __init__(self) -> None:
        self._wire = wire.Wire(self._received, self._lost)
        self._engine: Engine | None = None
        self._open: dict[int, str] = {}
        self._outputs: list[wire.Packed] = []
        self._held: dict[int, tuple[int, ...]] = {}
        self._hold: asyncio.TimerHandle | None = None
        self._answers: list[tuple[int, MedleyError | AdapterError | None]] = []
        self._is_due = self._is_over = False
        self._told: EngineStats | None = None
        self._told_resident: tuple[str, ...] | None = None
        self._told_load_times: DurationCounts | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, to: socket.socket) -> None:
        """Connect, and wait for the end of the process."""
        await self._wire.connect(to)
        await asyncio.Event().wait()

    def _received(self, message: object) -> None:
        match message:
            case wire.Submit(key, request):
                self._submit(key, request)
            case wire.Abort(key):
                if key in self._open:
                    self._running().abort(self._open[key])
            case wire.Call():
                self._spawn(self._call(message))
            case wire.Unpin(digest):
                self._running().unpin_adapter(digest)
            case wire.Begin():
                self._spawn(self._begin(message))
            case _:
                raise AssertionError(message)

    async def _begin(self, begin: wire.Begin) -> None:
        """Start the engine. The imports that it takes are a thread's work, as the server may go away meanwhile."""
        _join_logs(begin.log)
        try:
            engine = await asyncio.to_thread(_made, begin.make)
            await engine.start()
        except (MedleyError, AdapterError) as error:
            self._fail(error)
        except Exception as error:
            _log.exception("the engine could not be started")
            self._fail(InternalError(f"the engine could not be started: {error}"))
        else:
            self._engine = engine
            # What is here now stays to the end; to look through it for garbage would stop the steps for as long.
            gc.collect()
            gc.freeze()
            self._wire.send(wire.Started(engine.info))
            self._look()

    def _fail(self, error: MedleyError | AdapterError) -> None:
        self._wire.send(wire.Failed(error))
        self._wire.close()

    def _submit(self, key: int, request: EngineRequest) -> None:
        try:
            outputs = self._running().submit(request)
        except MedleyError as refusal:
            self._put(key, EngineOutput(finish_reason=FinishReason.ERROR, error=refusal))
        except Exception:
            _log.exception("the engine could not take a request", extra={"request_id": request.request_id})
            failure = InternalError("the engine failed on this request")
            self._put(key, EngineOutput(finish_reason=FinishReason.ERROR, error=failure))
        else:
            self._open[key] = request.request_id
            outputs.forward(partial(self._put if request.stream else self._hold_back, key))

    def _put(self, key: int, output: EngineOutput) -> None:
        self._outputs.append(wire.pack(key, output))
        if output.finish_reason is not None:
            self._open.pop(key, None)
        self._report_soon()

    def _hold_back(self, key: int, output: EngineOutput) -> None:
        """Hold an output that is but tokens, to tell of it with those to come; all others are told of at once."""
        held = self._held.pop(key, ()) + output.token_ids
        if not wire.is_tokens(output):
            self._put(key, replace(output, token_ids=held))
            return
        self._held[key] = held
        if self._hold is None:
            self._hold = asyncio.get_running_loop().call_later(_HOLD_S, self._report)

    async def _call(self, call: wire.Call) -> None:
        error: MedleyError | AdapterError | None = None
        try:
            await getattr(self._running(), call.method)(call.adapter)
        except (MedleyError, AdapterError) as refusal:
            error = refusal
        except Exception:
            _log.exception("%s failed", call.method, extra={"digest": call.adapter.digest})
            error = InternalError("the engine failed on this adapter")
        self._answers.append((call.number, error))
        self._report_soon()

    def _report_soon(self) -> None:
        """Report after all that the engine hands over at once, so that a step is one message."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._report)

    def _look(self) -> None:
        """Report what changed without an output, and look again after a while."""
        if self._running().stats() != self._told:
            self._report()
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _report(self) -> None:
        self._is_due = False
        if self._is_over:
            return
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        self._outputs += self._held.items()
        self._held.clear()
        stats = self._running().stats()
        if not stats.alive:
            _log.error("the engine died; its process ends")
            os._exit(1)
        is_pace_new = stats.pace is not (self._told.pace if self._told is not None else None)
        is_resident_new = stats.resident != self._told_resident
        are_times_new = stats.adapter_load_times is not self._told_load_times
        self._wire.send(
            wire.Report(
                wire.counters_of(stats),
                wire.levels_of(stats),
                stats.resident if is_resident_new else None,
                stats.adapter_load_times if are_times_new else None,
                self._outputs,
                self._answers,
                stats.pace if is_pace_new else None,
            )
        )
        self._outputs, self._answers = [], []
        self._told, self._told_resident, self._told_load_times = stats, stats.resident, stats.adapter_load_times

    def _lost(self) -> None:
        self._is_over = True
        self._spawn(self._end())

    async def _end(self) -> None:
        """End the process, threads and all."""
        if self._engine is not None:
            with suppress(Exception):
                await asyncio.wait_for(self._engine.stop(), _STOP_S)
        os._exit(0)

    def _running(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _made(make: bytes) -> Engine:
    made: Engine = pickle.loads(make)()  # noqa: S301
    return made


def _join_logs(config: LogConfig) -> None:
    """Log as the server does, with the number of this process in each record."""
    configure_logging(config)
    logging.captureWarnings(capture=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_name_process)


def _name_process(record: logging.LogRecord) -> bool:
    record.engine_process = os.getpid()
    return True
