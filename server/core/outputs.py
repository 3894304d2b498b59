"""What a caller gets back, free of any protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.core.errors import MedleyError


class FinishReason(StrEnum):
    """Why a request ended; every accepted request ends with exactly one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one token, before temperature and truncation.

    Attributes:
        token_id: The token.
        logprob: Its log-probability.
        text: Its text; empty inside the engine, filled by the service.
        top: The most likely alternatives, best first.
    """

    token_id: int
    logprob: float
    text: str = ""
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """Which adapter version served a request.

    Attributes:
        name: Registered name.
        version: Version number, from 1.
        digest: SHA-256 content address, hexadecimal.
        kind: ``lora`` or ``prompt``.
    """

    name: str
    version: int
    digest: str
    kind: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; virtual tokens of a soft prompt are not counted."""

    num_prompt_tokens: int
    num_completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in milliseconds from the moment the service accepted the request.

    Attributes:
        queue_ms: Until the engine first scheduled it.
        ttft_ms: Until its first token reached the service.
        e2e_ms: Until its terminal chunk.
    """

    queue_ms: float
    ttft_ms: float
    e2e_ms: float


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """What an answer continues, for callers who asked to see it or its log-probabilities.

    Attributes:
        text: The prompt's text, special tokens by their names only where the caller gave token ids.
        token_ids: Its tokens, virtual ones not among them.
        tokens: The text of each token, where log-probabilities were asked for; else empty.
        logprobs: One entry per token, where asked for; None for a first token that nothing stands before.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of an answer. The last one, and only it, has a finish reason.

    Attributes:
        text: Text added by this chunk, possibly empty; the prompt's is never part of it.
        logprobs: One entry per token of this chunk when asked for; the token that ended the text may have one as well.
        num_tokens: Tokens generated since the last chunk, those included whose text is still to come.
        prompt: On the first chunk, if it is not a failure: the prompt, where it is to be echoed or its
            log-probabilities were asked for.
        finish_reason: Set on the terminal chunk.
        error: The error of a request that ended with ``error``, ``deadline`` or ``abort``.
        usage: Set on the terminal chunk.
        timings: Set on the terminal chunk.
        scores: ROUGE scores on the terminal chunk, when references came with the request and scoring was in time.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    prompt: EchoedPrompt | None = None
    finish_reason: FinishReason | None = None
    error: MedleyError | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A whole answer: what the chunks add up to."""

    request_id: str
    text: str
    adapters: tuple[AdapterUse, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: EchoedPrompt | None = None
    scores: Mapping[str, float] | None = None
