"""The parts of an answer that every route shares, and the summary itself."""

from typing import NotRequired

from typing_extensions import TypedDict

from server.api.http.wire.events import event
from server.core.outputs import AdapterUse, GenerationChunk, GenerationResult, Timings, Usage


class AdapterUseWire(TypedDict):
    """Which adapter version served the request."""

    name: str
    version: int
    digest: str
    kind: str


class UsageWire(TypedDict):
    """Token counts; virtual tokens of a soft prompt are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingsWire(TypedDict):
    """Durations in milliseconds since the request was accepted."""

    queue_ms: float
    ttft_ms: float
    e2e_ms: float


class SummarizeAnswer(TypedDict):
    """A whole summary."""

    request_id: str
    summary: str
    adapters: list[AdapterUseWire]
    finish_reason: str
    usage: UsageWire
    timings: TimingsWire
    scores: NotRequired[dict[str, float]]


class SummarizeEvent(TypedDict):
    """A piece of a summary; adapters come with the first, the rest with the last."""

    request_id: str
    delta: str
    adapters: NotRequired[list[AdapterUseWire]]
    finish_reason: NotRequired[str]
    usage: NotRequired[UsageWire]
    timings: NotRequired[TimingsWire]
    scores: NotRequired[dict[str, float]]


def adapters_wire(adapters: tuple[AdapterUse, ...]) -> list[AdapterUseWire]:
    """Translate the adapters of an answer."""
    return [{"name": a.name, "version": a.version, "digest": a.digest, "kind": a.kind} for a in adapters]


def usage_wire(usage: Usage) -> UsageWire:
    """Translate token counts."""
    prompt, completion = usage.num_prompt_tokens, usage.num_completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def timings_wire(timings: Timings) -> TimingsWire:
    """Translate durations."""
    return {"queue_ms": timings.queue_ms, "ttft_ms": timings.ttft_ms, "e2e_ms": timings.e2e_ms}


def summarize_answer(result: GenerationResult) -> SummarizeAnswer:
    """Translate a whole summary."""
    answer: SummarizeAnswer = {
        "request_id": result.request_id,
        "summary": result.text,
        "adapters": adapters_wire(result.adapters),
        "finish_reason": result.finish_reason,
        "usage": usage_wire(result.usage),
        "timings": timings_wire(result.timings),
    }
    if result.scores is not None:
        answer["scores"] = dict(result.scores)
    return answer


class SummaryPieces:
    """The pieces of one summary. See :class:`server.api.http.wire.events.Pieces`.

    Args:
        request_id: The request.
        adapters: What serves it.
    """

    def __init__(self, request_id: str, adapters: tuple[AdapterUse, ...]) -> None:
        """Begin before the first chunk."""
        self._request_id = request_id
        self._unsaid: tuple[AdapterUse, ...] | None = adapters

    def piece(self, _index: int, chunk: GenerationChunk) -> bytes:
        """Return the event of a chunk."""
        piece: SummarizeEvent = {"request_id": self._request_id, "delta": chunk.text}
        if self._unsaid is not None:
            piece["adapters"] = adapters_wire(self._unsaid)
            self._unsaid = None
        if chunk.finish_reason is not None:
            piece["finish_reason"] = chunk.finish_reason
        if chunk.usage is not None:
            piece["usage"] = usage_wire(chunk.usage)
        if chunk.timings is not None:
            piece["timings"] = timings_wire(chunk.timings)
        if chunk.scores is not None:
            piece["scores"] = dict(chunk.scores)
        return event(piece)

    def last(self) -> bytes:
        """Return nothing: the last chunk's event has it all."""
        return b""
