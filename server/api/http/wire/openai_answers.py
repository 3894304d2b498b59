"""OpenAI's answers, whole and in pieces; adapters, timings and scores ride along as fields of our own.

Source:
    Shapes: https://platform.openai.com/docs/api-reference/completions/object, ``/chat/object`` and
    ``/chat-streaming/streaming``.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.http.wire.answers import AdapterUseWire, TimingsWire, UsageWire
from server.core.outputs import TokenLogprob


class CompletionLogprobs(TypedDict):
    """Parallel lists, one place per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """The one choice of a completion, whole or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class TopLogprob(TypedDict):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopLogprob):
    """One token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """One entry per token."""

    content: list[ChatToken]
    refusal: None


class ChatMessageWire(TypedDict):
    """The answer's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatDelta(TypedDict):
    """What a piece adds to the message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChoice(TypedDict):
    """The one choice of a chat completion."""

    index: int
    message: ChatMessageWire
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatChunkChoice(TypedDict):
    """A piece of the one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class Envelope(TypedDict):
    """What every OpenAI object and every piece of one begins with; ``id`` is the request id."""

    id: str
    created: int
    model: str


class Extras(TypedDict, total=False):
    """Our own fields: with a whole answer, or with the last piece."""

    adapters: list[AdapterUseWire]
    timings: TimingsWire
    scores: dict[str, float]


class Completion(Envelope, Extras):
    """A completion, whole or in pieces (OpenAI gives both the same name)."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[UsageWire | None]


class ChatCompletion(Envelope, Extras):
    """A whole chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageWire


class ChatChunk(Envelope, Extras):
    """A piece of a chat completion."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageWire | None]


class ModelCard(TypedDict):
    """One entry of the model list: the base or an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """What can be written into ``model``."""

    object: Literal["list"]
    data: list[ModelCard]


def completion_logprobs(tokens: tuple[TokenLogprob, ...], offset: int) -> CompletionLogprobs:
    """Translate log-probabilities; ``offset`` is the place in the text, in characters, where they begin."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs:
    """Translate log-probabilities."""
    content: list[ChatToken] = [
        {**_top_logprob(token), "top_logprobs": [_top_logprob(top) for top in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _top_logprob(token: TokenLogprob) -> TopLogprob:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
