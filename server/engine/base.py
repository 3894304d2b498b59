"""The face every engine shows to the service, and the nouns that cross it.

An engine sees token ids and resolved adapters only: it knows no text, no adapter names, no registry and no store.
All methods are called from the event loop's thread; an engine keeps its own threads or processes behind them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from adapters.manifest import AdapterKind, BaseModelSpec
from server.core.errors import MedleyError
from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.pace import Pace
from server.observability.durations import DurationCounts


class Feature(StrEnum):
    """Parameters that not every engine honours; greedy choice, temperature, top-k, top-p and seed all do."""

    REPETITION_PENALTY = "repetition_penalty"
    NO_REPEAT_NGRAM = "no_repeat_ngram_size"
    PRESENCE_AND_FREQUENCY_PENALTY = "presence_penalty, frequency_penalty"
    MIN_NEW_TOKENS = "min_new_tokens"
    IGNORE_EOS = "ignore_eos"
    MIN_P = "min_p"
    LOGIT_BIAS = "logit_bias"
    STOP_TOKEN_IDS = "stop_token_ids"  # noqa: S105
    GRAMMAR = "grammar"
    PROMPT_LOGPROBS = "prompt_logprobs"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """An adapter as an engine sees it.

    Attributes:
        digest: SHA-256 content address; the identity for slots and caches.
        kind: Which family it is.
        path: Folder with the verified PEFT files, on local disk.
        num_virtual_tokens: Length of a soft prompt or a prefix; 0 for weight adapters.
        rank: Largest rank of a LoRA; 0 for soft prompts.
    """

    digest: str
    kind: AdapterKind
    path: Path
    num_virtual_tokens: int = 0
    rank: int = 0

    @property
    def num_encoder_tokens(self) -> int:
        """Positions it adds to the encoder input: those of a soft prompt. A prefix stands in the decoder."""
        return self.num_virtual_tokens if self.kind is AdapterKind.PROMPT else 0

    @property
    def num_decoder_tokens(self) -> int:
        """Positions it takes before a row's first generated token: those of a prefix."""
        return self.num_virtual_tokens if self.kind is AdapterKind.PREFIX else 0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as an engine sees it.

    Attributes:
        request_id: Unique among the requests in flight.
        prompt_token_ids: Encoder input, or what a decoder-only base continues; special tokens included, not empty.
        sampling: How to choose tokens; stop strings are the service's business and are ignored here.
        weight_adapter: Adapter that changes the base's layers, or None.
        soft_prompt: Soft prompt or prefix, or None.
        deadline_s: Monotonic time at which the row ends with ``deadline``, or None.
        tenant: Whose request it is: an engine that queues by itself shares its work out among those who wait. Says
            nothing of who that is.
        priority: Its class in the queue: the smaller, the earlier.
        stream: Whether its outputs are waited for one by one; else those between the first and the last may come a
            little later, several as one.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    weight_adapter: ResolvedAdapter | None = None
    soft_prompt: ResolvedAdapter | None = None
    deadline_s: float | None = None
    tenant: str = ""
    priority: int = 0
    stream: bool = True


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What one step added to one request. The last one, and only it, has a finish reason.

    Attributes:
        token_ids: New tokens; the end-of-sequence token is not among them.
        logprobs: One entry per new token when asked for. Where there is no encoder, the token that ended the text has
            one too, behind them: who scores texts by one token more than they have counts on an entry for it.
        prompt_logprobs: On the first output, when asked for: one entry per prompt token, virtual ones not among them;
            None for a first token that nothing stands before.
        finish_reason: Set on the terminal output.
        error: Set when the reason is ``error``.
        queue_s: On the first output: seconds from submission until the request was first scheduled.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    error: MedleyError | None = None
    queue_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and what it can do; constant once it has started.

    Attributes:
        name: Engine name, as ``native``.
        is_encoder_decoder: Whether the prompt goes through an encoder. If not, prompt and answer are one sequence,
            which ``max_model_len`` bounds as a whole.
        kinds: Adapter families it serves.
        features: Sampling parameters it honours beside those that every engine does.
        base: The base model: id, fingerprint and the shapes adapters must match.
        device: ``cpu`` or ``cuda``.
        dtype: Serving dtype, ``float32`` or ``bfloat16``.
        max_num_seqs: Most requests in one batch.
        max_num_waiting: Most requests in the queue.
        max_model_len: Most encoder positions, or positions at all where there is no encoder; virtual tokens included.
        max_new_tokens: Most generated tokens of a request.
        max_loras: Weight adapters resident on the device at once.
        max_lora_rank: Largest rank accepted.
        max_soft_prompts: Soft prompts and prefixes resident on the device at once.
        max_virtual_tokens: Longest soft prompt or prefix accepted.
        quantization: How the base's linear layers are kept; ``none`` means in the serving dtype.
        num_weight_bytes: What the base takes on the device; 0 where the engine has none.
        max_wait_s: Longest wait in the queue that a request may have to expect; 0 for any.
    """

    name: str
    is_encoder_decoder: bool
    kinds: frozenset[AdapterKind]
    features: frozenset[Feature]
    base: BaseModelSpec
    device: str
    dtype: str
    max_num_seqs: int
    max_num_waiting: int
    max_model_len: int
    max_new_tokens: int
    max_loras: int
    max_lora_rank: int
    max_soft_prompts: int
    max_virtual_tokens: int
    quantization: str = "none"
    num_weight_bytes: int = 0
    max_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine for metrics and health.

    Attributes:
        alive: False once the step loop died.
        num_waiting: Requests in the queue.
        num_running: Requests in the batch.
        resident: Digests on the device.
        num_adapter_loads: Loads since start.
        num_adapter_evictions: Evictions since start.
        num_adapter_host_hits: Loads that found the weights in host memory, since start.
        num_adapter_host_bytes: Bytes of adapters kept in host memory.
        adapter_load_times: How long it took to bring adapters up, since start.
        num_steps: Steps since start.
        num_generated_tokens: Tokens since start.
        is_restarting: Whether an engine that is not alive will be again by itself.
        pace: How fast it works, where it measures that and there was enough to go by.
    """

    alive: bool
    num_waiting: int
    num_running: int
    resident: tuple[str, ...] = field(default=())
    num_adapter_loads: int = 0
    num_adapter_evictions: int = 0
    num_adapter_host_hits: int = 0
    num_adapter_host_bytes: int = 0
    adapter_load_times: DurationCounts = field(default=DurationCounts())
    num_steps: int = 0
    num_generated_tokens: int = 0
    is_restarting: bool = False
    pace: Pace | None = None


class Outputs(Protocol):
    """The outputs of one request, an asynchronous iterator that ends after the terminal one."""

    def __aiter__(self) -> AsyncIterator[EngineOutput]:
        """Return the outputs still to come."""
        ...

    def __anext__(self) -> Awaitable[EngineOutput]:
        """Return the next output, waiting for it."""
        ...

    @property
    def has_next(self) -> bool:
        """Whether the next output is there already, so that no time passes until it can be read."""
        ...

    def forward(self, take: Callable[[EngineOutput], None]) -> None:
        """Give every output to ``take`` as it comes, without a task; the iterator is then not read any more."""
        ...


class Engine(Protocol):
    """An engine. See the module for threads and for what it does not know."""

    @property
    def info(self) -> EngineInfo:
        """What the engine is; valid after :meth:`start`."""
        ...

    async def start(self) -> None:
        """Load the base and begin stepping.

        Raises:
            MedleyError: If the model cannot be loaded; the message says what to do.
        """
        ...

    def submit(self, request: EngineRequest) -> Outputs:
        """Queue a request and return its outputs, which end with exactly one terminal output.

        Closing the iterator early aborts the request; its row is free at the next step.

        Raises:
            ResourceExhaustedError: If the queue is full.
            DeadlineExceededError: If the engine measures its pace, others wait, and the answer would be late.
            UnavailableError: If the engine is draining or dead.
            AlreadyExistsError: If the request id is in flight.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request with ``abort`` at the next step; unknown ids are ignored."""
        ...

    async def check_adapter(self, adapter: ResolvedAdapter) -> None:
        """Run an adapter once on a short input, beside running requests.

        Raises:
            InvalidAdapterError: If its files do not fit or its logits are not finite.
        """
        ...

    async def pin_adapter(self, adapter: ResolvedAdapter) -> None:
        """Load an adapter now and keep it resident until :meth:`unpin_adapter`.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
        """
        ...

    def unpin_adapter(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        ...

    def stats(self) -> EngineStats:
        """Return a snapshot; cheap, safe to call often."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, finish the running ones, abort what is left after ``grace_s`` seconds."""
        ...

    async def stop(self) -> None:
        """Stop stepping and free the device; every open request gets its terminal output."""
        ...
