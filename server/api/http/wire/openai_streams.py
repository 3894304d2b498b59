"""Generations into OpenAI's objects: whole answers from results, pieces from chunks."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from server.api.http.wire.answers import adapters_wire, timings_wire, usage_wire
from server.api.http.wire.openai_answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    Completion,
    CompletionChoice,
    Envelope,
    Extras,
    chat_logprobs,
    completion_logprobs,
)
from server.core.outputs import AdapterUse, GenerationChunk, GenerationResult

Events = AsyncIterator[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller wants to be told beside the text.

    Attributes:
        logprobs: Log-probabilities of the tokens.
        usage: Token counts, in a last piece of their own.
    """

    logprobs: bool
    usage: bool = False


def completion(envelope: Envelope, result: GenerationResult, told: Told) -> Completion:
    """Translate a whole completion."""
    logprobs = completion_logprobs(result.logprobs, 0) if told.logprobs else None
    answer = _completion(
        envelope, [{"index": 0, "text": result.text, "logprobs": logprobs, "finish_reason": result.finish_reason}]
    )
    answer["usage"] = usage_wire(result.usage)
    _add_extras(answer, result.adapters, result)
    return answer


def chat_completion(envelope: Envelope, result: GenerationResult, told: Told) -> ChatCompletion:
    """Translate a whole chat completion."""
    choice: ChatChoice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "logprobs": chat_logprobs(result.logprobs) if told.logprobs else None,
        "finish_reason": result.finish_reason,
    }
    answer: ChatCompletion = {
        "id": envelope["id"],
        "object": "chat.completion",
        "created": envelope["created"],
        "model": envelope["model"],
        "choices": [choice],
        "usage": usage_wire(result.usage),
    }
    _add_extras(answer, result.adapters, result)
    return answer


async def completion_events(
    envelope: Envelope, adapters: tuple[AdapterUse, ...], chunks: AsyncIterator[GenerationChunk], told: Told
) -> Events:
    """Translate a completion in pieces.

    Raises:
        MedleyError: What ``chunks`` raises.
    """
    offset = 0
    async for chunk in chunks:
        logprobs = completion_logprobs(chunk.logprobs, offset) if told.logprobs else None
        offset += sum(len(token.text) for token in chunk.logprobs)
        event = _completion(
            envelope, [{"index": 0, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}]
        )
        _add_extras(event, adapters, chunk)
        if told.usage:
            event["usage"] = None  # OpenAI's word on every piece but the last
        yield event
        if told.usage and chunk.usage is not None:
            last = _completion(envelope, [])
            last["usage"] = usage_wire(chunk.usage)
            yield last


async def chat_events(
    envelope: Envelope, adapters: tuple[AdapterUse, ...], chunks: AsyncIterator[GenerationChunk], told: Told
) -> Events:
    """Translate a chat completion in pieces; the first carries the role.

    Raises:
        MedleyError: What ``chunks`` raises.
    """
    delta: ChatDelta = {"role": "assistant"}
    async for chunk in chunks:
        delta["content"] = chunk.text
        logprobs = chat_logprobs(chunk.logprobs) if told.logprobs else None
        event = _chat_chunk(
            envelope, [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": chunk.finish_reason}]
        )
        delta = {}
        _add_extras(event, adapters, chunk)
        if told.usage:
            event["usage"] = None  # OpenAI's word on every piece but the last
        yield event
        if told.usage and chunk.usage is not None:
            last = _chat_chunk(envelope, [])
            last["usage"] = usage_wire(chunk.usage)
            yield last


def _completion(envelope: Envelope, choices: list[CompletionChoice]) -> Completion:
    return {
        "id": envelope["id"],
        "object": "text_completion",
        "created": envelope["created"],
        "model": envelope["model"],
        "choices": choices,
    }


def _chat_chunk(envelope: Envelope, choices: list[ChatChunkChoice]) -> ChatChunk:
    return {
        "id": envelope["id"],
        "object": "chat.completion.chunk",
        "created": envelope["created"],
        "model": envelope["model"],
        "choices": choices,
    }


def _add_extras(event: Extras, adapters: tuple[AdapterUse, ...], answer: GenerationResult | GenerationChunk) -> None:
    if answer.timings is not None:
        event["adapters"] = adapters_wire(adapters)
        event["timings"] = timings_wire(answer.timings)
    if answer.scores is not None:
        event["scores"] = dict(answer.scores)
