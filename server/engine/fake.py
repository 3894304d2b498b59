"""A deterministic engine without torch: most server tests run on it, and ``medley serve --engine fake``.

The answer is the prompt itself, rotated by an offset drawn from the adapters' digests, one token a step; so the same
prompt with the same adapters always gives the same tokens, and other adapters give others. It honours every rule of
:mod:`server.engine.base`: bounded queue, slots, abort, deadline, drain, death.

Everything runs on the event loop's thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from adapters.errors import InvalidAdapterError
from adapters.manifest import AdapterKind, AdapterRole, BaseModelSpec
from server.core.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    MedleyError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.engine.base import EngineInfo, EngineOutput, EngineRequest, EngineStats, Feature, ResolvedAdapter
from server.engine.fake_answers import (
    NUM_SPECIAL_TOKENS,
    made_up_logprobs,
    next_token,
    prompt_logprobs,
    whole_answer,
)
from server.engine.fake_slots import FakeSlots
from server.engine.streams import OutputStream
from server.engine.waiting import queue_is_full

# It has no logits: what only changes those changes nothing. A grammar would have to.
FEATURES = frozenset(Feature) - {Feature.GRAMMAR}
FAKE_BASE = BaseModelSpec(
    model_id="fake",
    architecture="FakeForConditionalGeneration",
    d_model=8,
    vocab_size=256 + NUM_SPECIAL_TOKENS,
    linear_shapes={
        f"{stack}.block.0.layer.0.SelfAttention.{name}": (8, 8) for stack in ("encoder", "decoder") for name in "qv"
    },
    weights_digest="fa4e" * 16,
    norm_paths=frozenset({"encoder.final_layer_norm", "decoder.final_layer_norm"}),
    num_decoder_layers=1,
    num_heads=2,
    d_kv=4,
)


@dataclass(frozen=True, slots=True)
class FakeEngineConfig:
    """How the fake engine behaves.

    Attributes:
        base: The base model it pretends to serve.
        is_encoder_decoder: Whether that is to have an encoder; without, prompt and answer share ``max_model_len``.
        kinds: Adapter families it serves.
        features: Sampling parameters it honours.
        step_time_s: Seconds one step takes.
        max_num_seqs: Most requests in one batch.
        max_num_waiting: Most requests in the queue.
        max_model_len: Most prompt tokens, virtual tokens included.
        max_new_tokens: Most generated tokens of a request.
        max_loras: Weight adapters resident at once.
        max_lora_rank: Largest rank accepted.
        max_soft_prompts: Soft prompts resident at once.
        max_virtual_tokens: Longest soft prompt or prefix accepted.
    """

    base: BaseModelSpec = FAKE_BASE
    is_encoder_decoder: bool = True
    kinds: frozenset[AdapterKind] = frozenset(AdapterKind)
    features: frozenset[Feature] = FEATURES
    step_time_s: float = 0.0
    max_num_seqs: int = 8
    max_num_waiting: int = 64
    max_model_len: int = 1024
    max_new_tokens: int = 256
    max_loras: int = 8
    max_lora_rank: int = 64
    max_soft_prompts: int = 8
    max_virtual_tokens: int = 128


@dataclass(slots=True)
class _Row:
    request: EngineRequest
    answer: tuple[int, ...]
    stream: OutputStream
    submitted_s: float
    num_emitted: int = 0
    queue_s: float | None = None
    aborted: bool = False
    ended: bool = False

    @property
    def adapters(self) -> Iterator[ResolvedAdapter]:
        request = self.request
        return (adapter for adapter in (request.weight_adapter, request.soft_prompt) if adapter is not None)


class FakeEngine:
    """See the module. Implements :class:`server.engine.base.Engine`."""

    def __init__(self, config: FakeEngineConfig | None = None) -> None:
        """Start nothing; :meth:`start` does."""
        self._config = config or FakeEngineConfig()
        self._rows: dict[str, _Row] = {}
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._slots = {
            AdapterRole.WEIGHTS: FakeSlots(self._config.max_loras),
            AdapterRole.PROMPT: FakeSlots(self._config.max_soft_prompts),
        }
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._draining = False
        self._num_steps = 0
        self._num_generated_tokens = 0

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        config = self._config
        return EngineInfo(
            name="fake",
            is_encoder_decoder=config.is_encoder_decoder,
            kinds=config.kinds,
            features=config.features,
            base=config.base,
            device="cpu",
            dtype="float32",
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens,
            max_loras=config.max_loras,
            max_lora_rank=config.max_lora_rank,
            max_soft_prompts=config.max_soft_prompts,
            max_virtual_tokens=config.max_virtual_tokens,
        )

    async def start(self) -> None:
        """Begin stepping."""
        self._task = asyncio.create_task(self._run(), name="fake-engine")

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request; see :meth:`server.engine.base.Engine.submit`.

        Raises:
            ResourceExhaustedError: If the queue is full.
            UnavailableError: If the engine is draining or dead.
            AlreadyExistsError: If the request id is in flight.
        """
        self._require_alive()
        if self._draining:
            raise UnavailableError("the engine is draining")
        if request.request_id in self._rows:
            raise AlreadyExistsError(f"request {request.request_id} is in flight", param="request_id")
        if len(self._waiting) >= self._config.max_num_waiting:
            raise queue_is_full(self._config.max_num_waiting)
        stream = OutputStream(on_close=partial(self.abort, request.request_id))
        row = _Row(request, whole_answer(request), stream, time.monotonic())
        self._rows[request.request_id] = row
        self._waiting.append(row)
        self._idle.clear()
        self._wake.set()
        return stream

    def abort(self, request_id: str) -> None:
        """End a request with ``abort`` at the next step; unknown ids are ignored."""
        if row := self._rows.get(request_id):
            row.aborted = True
            self._wake.set()

    async def check_adapter(self, adapter: ResolvedAdapter) -> None:
        """Look whether the files are there and within the limits.

        Raises:
            InvalidAdapterError: If they are not.
            UnavailableError: If the engine is dead.
        """
        self._require_alive()
        await asyncio.sleep(self._config.step_time_s)
        if not (adapter.path / "adapter_model.safetensors").is_file():
            raise InvalidAdapterError("adapter_model.safetensors is missing")
        if adapter.rank > self._config.max_lora_rank:
            raise InvalidAdapterError(f"rank {adapter.rank} is over the limit of {self._config.max_lora_rank}")

    async def pin_adapter(self, adapter: ResolvedAdapter) -> None:
        """Keep an adapter resident until :meth:`unpin_adapter`.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
        """
        if not self._slots[adapter.kind.role].acquire(adapter.digest):
            raise ResourceExhaustedError("every adapter slot is pinned or in use")

    def unpin_adapter(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        for slots in self._slots.values():
            slots.release(digest)

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        slots = tuple(self._slots.values())
        return EngineStats(
            alive=self._alive,
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            resident=tuple(digest for table in slots for digest in table.resident),
            num_adapter_loads=sum(table.num_loads for table in slots),
            num_adapter_evictions=sum(table.num_evictions for table in slots),
            num_steps=self._num_steps,
            num_generated_tokens=self._num_generated_tokens,
        )

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, finish the running ones, abort what is left after ``grace_s`` seconds."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            for request_id in tuple(self._rows):
                self.abort(request_id)
            await self._idle.wait()

    async def stop(self) -> None:
        """Stop stepping; every open request gets its terminal output."""
        self._die(FinishReason.ABORT, UnavailableError("the server stopped"))

    def kill(self) -> None:
        """Die as an engine does whose step loop failed; for tests."""
        self._die(FinishReason.ERROR, UnavailableError("the engine died"))

    @property
    def _alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def _require_alive(self) -> None:
        if not self._alive:
            raise UnavailableError("the engine is not running")

    def _die(self, reason: FinishReason, error: MedleyError) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for row in tuple(self._rows.values()):
            self._end(row, EngineOutput(finish_reason=reason, error=error))
        self._drop_ended()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._step()
            if not self._rows:
                self._wake.clear()
            await asyncio.sleep(self._config.step_time_s)

    def _step(self) -> None:
        self._num_steps += 1
        self._end_unwanted()
        self._admit()
        for row in self._running:
            self._emit(row)
        self._drop_ended()

    def _end_unwanted(self) -> None:
        now_s = time.monotonic()
        for row in self._rows.values():
            deadline_s = row.request.deadline_s
            if row.aborted:
                self._end(row, EngineOutput(finish_reason=FinishReason.ABORT))
            elif deadline_s is not None and deadline_s <= now_s:
                error = DeadlineExceededError("the deadline passed before the answer was complete")
                self._end(row, EngineOutput(finish_reason=FinishReason.DEADLINE, error=error))
        self._drop_ended()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._config.max_num_seqs:
            row = min(self._waiting, key=lambda each: each.request.priority)
            if not self._acquire_slots(row):
                return
            self._waiting.remove(row)
            self._running.append(row)
            row.queue_s = time.monotonic() - row.submitted_s

    def _acquire_slots(self, row: _Row) -> bool:
        held: list[ResolvedAdapter] = []
        for adapter in row.adapters:
            if not self._slots[adapter.kind.role].acquire(adapter.digest):
                for earlier in held:
                    self._slots[earlier.kind.role].release(earlier.digest)
                return False
            held.append(adapter)
        return True

    def _emit(self, row: _Row) -> None:
        sampling = row.request.sampling
        num_positions = len(row.request.prompt_token_ids) + sum(each.num_encoder_tokens for each in row.adapters)
        if num_positions > self._config.max_model_len:
            error = InvalidArgumentError(f"the prompt has {num_positions} positions")
            self._end(row, EngineOutput(finish_reason=FinishReason.ERROR, error=error))
            return
        token_ids, reason = next_token(row.answer, row.num_emitted, sampling)
        is_first, row.num_emitted = row.queue_s is not None, row.num_emitted + len(token_ids)
        self._num_generated_tokens += len(token_ids)
        queue_s, row.queue_s = row.queue_s, None
        output = EngineOutput(
            token_ids,
            made_up_logprobs(token_ids, sampling.num_logprobs),
            prompt_logprobs(row.request) if is_first else (),
            reason,
            queue_s=queue_s,
        )
        if reason is None:
            row.stream.put(output)
        else:
            self._end(row, output)

    def _end(self, row: _Row, output: EngineOutput) -> None:
        row.ended = True
        row.stream.put(output)

    def _drop_ended(self) -> None:
        for row in [row for row in self._running if row.ended]:
            for adapter in row.adapters:
                self._slots[adapter.kind.role].release(adapter.digest)
        self._running = [row for row in self._running if not row.ended]
        self._waiting = deque(row for row in self._waiting if not row.ended)
        self._rows = {request_id: row for request_id, row in self._rows.items() if not row.ended}
        if not self._rows:
            self._idle.set()
