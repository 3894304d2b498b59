"""Chunks into the pieces of OpenAI's streams.

What all pieces of a stream have in common is written once: most of what a stream costs is writing pieces.

Source:
    Shapes: https://platform.openai.com/docs/api-reference/chat-streaming/streaming; ``continuous_usage_stats``:
    https://docs.vllm.ai/en/stable/serving/openai_compatible_server/.
"""

from abc import ABC, abstractmethod
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.http.wire.answers import UsageWire, usage_wire
from server.api.http.wire.events import event, to_json
from server.api.http.wire.openai_answers import CompletionChoice, Envelope, Extras, Told, add_extras, usage_of_all
from server.api.http.wire.openai_logprobs import ChatLogprobs, CompletionLogprobs, chat_logprobs, completion_logprobs
from server.core.outputs import GenerationChunk, Usage
from server.service.several import Several


class ChatDelta(TypedDict):
    """What a piece adds to a message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatPieceChoice(TypedDict):
    """A piece of one message."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class _PieceExtras(Extras, total=False):
    usage: UsageWire | None


class OpenAIPieces(ABC):
    """The pieces of one call's answers, in whatever order they come.

    Args:
        envelope: What every piece begins with.
        kind: What it calls itself.
        several: What the call asked for.
        told: What the caller wants to be told.
    """

    def __init__(self, envelope: Envelope, kind: str, several: Several, told: Told) -> None:
        """Begin before the first chunk."""
        self._told = told
        self._adapters = several.adapters
        self._usages = [Usage(generation.num_prompt_tokens, 0) for generation in several.generations]
        self._envelope = {**envelope, "object": kind}
        self._head = f'data: {to_json(self._envelope)[:-1]},"choices":['
        # Null is OpenAI's word on every piece but the last.
        self._tail = '],"usage":null}\n\n' if told.usage else "]}\n\n"

    def piece(self, index: int, chunk: GenerationChunk) -> bytes:
        """Return the event of a chunk."""
        choice = to_json(self._choice(index, chunk))
        if chunk.finish_reason is None and not self._told.continuous_usage:
            return (self._head + choice + self._tail).encode()
        return f"{self._head}{choice}],{to_json(self._extras(index, chunk))[1:]}\n\n".encode()

    def last(self) -> bytes:
        """Return the event with the token counts of all answers, if they are to be told."""
        if not self._told.usage:
            return b""
        usage = usage_wire(usage_of_all(self._usages, self._told.num_choices))
        return event({**self._envelope, "choices": [], "usage": usage})

    @abstractmethod
    def _choice(self, index: int, chunk: GenerationChunk) -> object: ...

    def _extras(self, index: int, chunk: GenerationChunk) -> _PieceExtras:
        extras: _PieceExtras = {}
        before = self._usages[index]
        usage = Usage(before.num_prompt_tokens, before.num_completion_tokens + chunk.num_tokens)
        self._usages[index] = usage if chunk.usage is None else chunk.usage
        if self._told.usage:
            extras["usage"] = usage_wire(self._usages[index]) if self._told.continuous_usage else None
        add_extras(extras, self._adapters, chunk)
        return extras


class CompletionPieces(OpenAIPieces):
    """Pieces of completions."""

    def __init__(self, envelope: Envelope, several: Several, told: Told) -> None:
        """Begin before the first chunk."""
        super().__init__(envelope, "text_completion", several, told)
        self._offsets = [0] * len(self._usages)

    def _choice(self, index: int, chunk: GenerationChunk) -> CompletionChoice:
        echoed = chunk.prompt if self._told.echo else None
        logprobs: CompletionLogprobs | None = None
        if self._told.logprobs:
            logprobs = completion_logprobs(chunk.logprobs, self._offsets[index], echoed)
            self._offsets[index] += sum(map(len, logprobs["tokens"]))
        return {
            "index": index,
            "text": chunk.text if echoed is None else echoed.text + chunk.text,
            "logprobs": logprobs,
            "finish_reason": chunk.finish_reason,
        }


class ChatPieces(OpenAIPieces):
    """Pieces of messages; the first of each carries the role, and what the message begins with."""

    def __init__(self, envelope: Envelope, several: Several, told: Told) -> None:
        """Begin before the first chunk."""
        super().__init__(envelope, "chat.completion.chunk", several, told)
        self._unbegun = set(range(len(self._usages)))

    def _choice(self, index: int, chunk: GenerationChunk) -> ChatPieceChoice:
        delta: ChatDelta = {"content": chunk.text}
        if index in self._unbegun:
            self._unbegun.remove(index)
            delta = {"role": "assistant", "content": self._told.opening + chunk.text}
        return {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(chunk.logprobs) if self._told.logprobs else None,
            "finish_reason": chunk.finish_reason,
        }
