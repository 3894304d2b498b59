"""The vLLM engine's asynchronous face: which requests are open, what they hold, and how each of them ends once.

vLLM computes in processes of its own, behind a :class:`~server.engine.vllm.core.Core`; all here is on the event loop's
thread, and nothing here knows a vLLM type. When the core dies, every open request ends, and the supervisor launches
another; until that is up, with the pinned adapters, requests are refused.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine
from functools import partial
from math import isfinite

from adapters.errors import AdapterError, InvalidAdapterError
from adapters.manifest import AdapterRole
from server.core.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    MedleyError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineInfo, EngineOutput, EngineRequest, EngineStats, ResolvedAdapter
from server.engine.loading_error import loading_error
from server.engine.streams import OutputStream
from server.engine.supervisor import BackOff, CoreDiedError, Supervisor
from server.engine.vllm.config import VllmEngineConfig
from server.engine.vllm.core import Core, Handover, NotFiniteError
from server.engine.vllm.launch import Launch, abandon_launches, launch_vllm
from server.engine.vllm.residency import Residency
from server.engine.vllm.row import Row
from server.engine.waiting import queue_is_full
from server.observability.durations import Durations

__all__ = ["VllmEngine", "VllmEngineConfig"]

_log = logging.getLogger(__name__)

_NUM_PROBE_TOKENS = 8


class VllmEngine(Engine):
    """An engine for decoder-only models.

    Args:
        config: Model, place and limits.
        launch: How to start vLLM.
        back_off: How long to wait before it is started again.
    """

    def __init__(self, config: VllmEngineConfig, launch: Launch = launch_vllm, back_off: BackOff | None = None) -> None:
        """Start nothing; :meth:`start` does."""
        self._config = config
        self._supervisor = Supervisor(
            partial(launch, config),
            went_up=self._went_up,
            went_down=self._went_down,
            abandon=abandon_launches,
            back_off=back_off or BackOff(),
        )
        self._core: Core | None = None
        self._end: UnavailableError | None = UnavailableError("the engine has not started")
        self._info: EngineInfo | None = None
        self._open: dict[str, Row] = {}
        self._keys = itertools.count()
        self._pinned: dict[str, ResolvedAdapter] = {}
        self._places: dict[AdapterRole, Residency[object]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._load_times = Durations()
        self._num_steps = self._num_generated_tokens = 0

    @property
    def info(self) -> EngineInfo:
        """What the engine is; valid after :meth:`start`."""
        assert self._info is not None
        return self._info

    async def start(self) -> None:
        """Launch vLLM, which loads the base.

        Raises:
            MedleyError: If it cannot be launched; the message says what to do.
        """
        await self._supervisor.start()

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs, which end with exactly one terminal output.

        Raises:
            InvalidArgumentError: If it is beyond the engine's limits.
            ResourceExhaustedError: If the queue is full.
            UnavailableError: If the engine is draining or dead.
            AlreadyExistsError: If the request id is in flight.
        """
        self._require_alive()
        if self._is_draining:
            raise UnavailableError("the engine is draining")
        if request.request_id in self._open:
            raise AlreadyExistsError(f"request {request.request_id} is in flight", param="request_id")
        if len(self._open) >= self.info.max_num_seqs + self.info.max_num_waiting:
            raise queue_is_full(self.info.max_num_waiting)
        self._check(request)
        return self._begin(request)

    def abort(self, request_id: str) -> None:
        """End a request with ``abort``; unknown ids are ignored."""
        if row := self._open.get(request_id):
            self._end_row(row, EngineOutput(finish_reason=FinishReason.ABORT))

    async def check_adapter(self, adapter: ResolvedAdapter) -> None:
        """Run an adapter once on a short input, beside running requests; it takes a place as theirs do.

        Raises:
            InvalidAdapterError: If its files do not fit or its logits are not finite.
            AdapterTooLargeError: If it is over a limit.
            ResourceExhaustedError: If every place is pinned.
            UnavailableError: If the engine is not running.
        """
        await asyncio.to_thread(self._require_alive().check, adapter)
        residency = self._places[adapter.kind.role]
        place = await residency.acquire(adapter)
        try:
            outputs = [output async for output in self._begin(self._probe(adapter))]
        finally:
            residency.release(place)
        error = outputs[-1].error
        if error is not None and not isinstance(error, NotFiniteError):
            raise error
        if error is not None or not all(isfinite(entry.logprob) for output in outputs for entry in output.logprobs):
            raise InvalidAdapterError("the adapter's logits are not finite on a short input")

    async def pin_adapter(self, adapter: ResolvedAdapter) -> None:
        """Load an adapter now and keep it resident until :meth:`unpin_adapter`, also through the engine's death.

        Raises:
            ResourceExhaustedError: If every place is pinned or in use.
            MedleyError: If it cannot be loaded.
        """
        self._require_alive()
        try:
            await self._places[adapter.kind.role].pin(adapter)
        except AdapterError as error:
            raise loading_error(error) from error
        self._pinned[adapter.digest] = adapter

    def unpin_adapter(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        self._pinned.pop(digest, None)
        for residency in self._places.values():
            residency.unpin(digest)

    def stats(self) -> EngineStats:
        """Return a snapshot; cheap, safe to call often."""
        num_running = sum(row.is_running for row in self._open.values())
        places = self._places.values()
        return EngineStats(
            alive=self._end is None,
            is_restarting=self._end is not None and self._supervisor.is_running,
            num_waiting=len(self._open) - num_running,
            num_running=num_running,
            resident=tuple(digest for residency in places for digest in residency.resident),
            num_adapter_loads=sum(residency.num_loads for residency in places),
            num_adapter_evictions=sum(residency.num_evictions for residency in places),
            adapter_load_times=self._load_times.counted,
            num_steps=self._num_steps + (self._core.num_steps if self._core else 0),
            num_generated_tokens=self._num_generated_tokens,
        )

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, finish the running ones, abort what is left after ``grace_s`` seconds."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._is_idle.wait(), grace_s)
        except TimeoutError:
            for request_id in tuple(self._open):
                self.abort(request_id)

    async def stop(self) -> None:
        """End vLLM; every open request gets its terminal output."""
        self._end = UnavailableError("the engine has stopped")
        for row in tuple(self._open.values()):
            self._end_row(row, EngineOutput(finish_reason=FinishReason.ABORT, error=self._end))
        await self._supervisor.stop()
        self._forget_core(self._end)

    def _went_up(self, core: Core) -> None:
        """Begin to serve with a core, once it has the pinned adapters."""
        self._core = core
        if self._info is None:
            self._info = core.info
            self._places = {
                AdapterRole.WEIGHTS: Residency(
                    core.num_resident_loras, self._load_lora, self._unload_lora, self._load_times
                ),
                AdapterRole.PROMPT: Residency(
                    core.info.max_soft_prompts, self._read_soft_prompt, _forget, self._load_times
                ),
            }
        if self._pinned:
            self._spawn(self._restore(core))
        else:
            self._end = None

    async def _restore(self, core: Core) -> None:
        """Bring back the pinned adapters, then serve."""
        for adapter in tuple(self._pinned.values()):
            try:
                await self._places[adapter.kind.role].pin(adapter)
            except (MedleyError, AdapterError) as error:
                if self._core is not core:
                    return  # it died meanwhile; the next one is given them all
                _log.error("adapter %s is not pinned any more: %s", adapter.digest, error.message)
                self._pinned.pop(adapter.digest, None)
        if self._core is core:
            self._end = None

    def _went_down(self) -> None:
        """End what was open on a core that died."""
        self._end = UnavailableError("the engine died and is being started again; try again in a while")
        for row in tuple(self._open.values()):
            self._end_row(row, EngineOutput(finish_reason=FinishReason.ERROR, error=self._end))
        self._forget_core(self._end)

    def _forget_core(self, error: UnavailableError) -> None:
        if self._core is not None:
            self._num_steps += self._core.num_steps
            self._core = None
            self._places[AdapterRole.WEIGHTS].clear(error)

    def _begin(self, request: EngineRequest) -> OutputStream:
        """Open a request, and send it on its way."""
        core = self._require_alive()
        row = Row(request, f"{request.request_id}-{next(self._keys)}", self._abandon)
        self._open[request.request_id] = row
        self._is_idle.clear()
        loop = asyncio.get_running_loop()
        if request.deadline_s is not None:
            row.timer = loop.call_later(request.deadline_s - row.submitted_s, self._expire, row)
        row.starting = loop.create_task(self._hand_over(row, core))
        return row.stream

    async def _hand_over(self, row: Row, core: Core) -> None:
        """Wait until a request's adapters are resident, and give it to the core."""
        request = row.request
        try:
            # Always in this order, so that no two requests wait for what the other holds.
            lora = await self._hold(row, request.weight_adapter)
            soft_prompt = await self._hold(row, request.soft_prompt)
            row.is_added = True
            held_s = time.monotonic() - row.submitted_s
            await core.add(Handover(row.key, request, lora, soft_prompt, held_s), partial(self._deliver, row))
        except CoreDiedError:
            pass  # the supervisor notices by itself, and then every open request ends
        except (MedleyError, AdapterError) as error:
            self._end_row(row, EngineOutput(finish_reason=FinishReason.ERROR, error=loading_error(error)))
        except Exception:
            _log.exception("a request could not be given to the engine", extra={"request_id": request.request_id})
            failure = InternalError("the engine failed on this request")
            self._end_row(row, EngineOutput(finish_reason=FinishReason.ERROR, error=failure))

    async def _hold(self, row: Row, adapter: ResolvedAdapter | None) -> object | None:
        if adapter is None:
            return None
        residency = self._places[adapter.kind.role]
        place = await residency.acquire(adapter)
        row.places.append((residency, place))
        return place.payload

    def _deliver(self, row: Row, output: EngineOutput) -> None:
        """Take an output from the core."""
        if row.is_over:
            return
        row.is_running = True
        self._num_generated_tokens += len(output.token_ids)
        row.stream.put(output)
        if output.finish_reason is not None:
            row.release()
            self._close(row)

    def _expire(self, row: Row) -> None:
        error = DeadlineExceededError("the deadline passed before the answer was complete")
        self._end_row(row, EngineOutput(finish_reason=FinishReason.DEADLINE, error=error))

    def _abandon(self, row: Row) -> None:
        """End a request whose reader went away."""
        self._end_row(row, EngineOutput(finish_reason=FinishReason.ABORT))

    def _end_row(self, row: Row, output: EngineOutput) -> None:
        """End a request here, wherever it is; its terminal output is not the core's."""
        if row.is_over:
            return
        row.stream.put(output)
        self._close(row)
        if row.starting is not None and row.starting is not asyncio.current_task():
            row.starting.cancel()
        if row.is_added and self._core is not None:
            self._spawn(self._abort(row, self._core))
        else:
            row.release()

    async def _abort(self, row: Row, core: Core) -> None:
        try:
            await core.abort(row.key)
        finally:
            # Not before: a LoRA may only be taken out once the core has been told that its request ended.
            row.release()

    def _close(self, row: Row) -> None:
        row.is_over = True
        if row.timer is not None:
            row.timer.cancel()
        del self._open[row.request.request_id]
        if not self._open:
            self._is_idle.set()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _require_alive(self) -> Core:
        if self._end is not None:
            raise self._end
        assert self._core is not None
        return self._core

    def _require_core(self) -> Core:
        """Return the core, be it that it does not serve yet."""
        if self._core is None:
            raise UnavailableError("the engine is not running")
        return self._core

    async def _load_lora(self, adapter: ResolvedAdapter) -> object:
        return await self._require_core().load_lora(adapter)

    async def _unload_lora(self, lora: object) -> None:
        await self._require_core().unload_lora(lora)

    async def _read_soft_prompt(self, adapter: ResolvedAdapter) -> object:
        return await asyncio.to_thread(self._require_core().read_soft_prompt, adapter)

    def _probe(self, adapter: ResolvedAdapter) -> EngineRequest:
        """Return a request that shows whether an adapter's logits are finite; no caller's has such an id."""
        is_prompt = adapter.kind.role is AdapterRole.PROMPT
        return EngineRequest(
            f"_check-{next(self._keys)}",
            tuple(range(min(_NUM_PROBE_TOKENS, self.info.base.vocab_size))),
            SamplingParams(max_new_tokens=1, ignore_eos=True, num_logprobs=0),
            weight_adapter=None if is_prompt else adapter,
            soft_prompt=adapter if is_prompt else None,
        )

    def _check(self, request: EngineRequest) -> None:
        """Refuse what this engine can never serve."""
        info, token_ids = self.info, request.prompt_token_ids
        num_tokens = len(token_ids) + (request.soft_prompt.num_virtual_tokens if request.soft_prompt else 0)
        if not token_ids:
            raise InvalidArgumentError("the prompt is empty", param="prompt")
        if num_tokens >= info.max_model_len:
            raise InvalidArgumentError(
                f"{num_tokens} prompt tokens leave no room for an answer within {info.max_model_len}", param="prompt"
            )
        if not 0 <= min(token_ids) <= max(token_ids) < info.base.vocab_size:
            raise InvalidArgumentError("a prompt token is not in the vocabulary", param="prompt")
        if (request.sampling.max_new_tokens or 0) > info.max_new_tokens:
            raise InvalidArgumentError(f"at most {info.max_new_tokens} new tokens", param="max_new_tokens")


async def _forget(_payload: object) -> None:
    """Let go of a soft prompt, which takes no more than that."""
