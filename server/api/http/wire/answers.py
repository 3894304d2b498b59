"""The parts of an answer that every route shares, and the summary itself."""

from collections.abc import AsyncIterator, Mapping
from typing import NotRequired

from typing_extensions import TypedDict

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


async def summarize_events(
    request_id: str, adapters: tuple[AdapterUse, ...], chunks: AsyncIterator[GenerationChunk]
) -> AsyncIterator[Mapping[str, object]]:
    """Translate a summary in pieces.

    Raises:
        MedleyError: What ``chunks`` raises.
    """
    first = True
    async for chunk in chunks:
        event: SummarizeEvent = {"request_id": request_id, "delta": chunk.text}
        if first:
            event["adapters"] = adapters_wire(adapters)
            first = False
        if chunk.finish_reason is not None:
            event["finish_reason"] = chunk.finish_reason
        if chunk.usage is not None:
            event["usage"] = usage_wire(chunk.usage)
        if chunk.timings is not None:
            event["timings"] = timings_wire(chunk.timings)
        if chunk.scores is not None:
            event["scores"] = dict(chunk.scores)
        yield event
