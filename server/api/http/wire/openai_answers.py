"""OpenAI's answers, whole; adapters, timings and scores ride along as fields of our own.

Source:
    Shapes: https://platform.openai.com/docs/api-reference/completions/object and ``/chat/object``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.http.wire.answers import (
    AdapterUseWire,
    TimingsWire,
    UsageWire,
    adapters_wire,
    timings_wire,
    usage_wire,
)
from server.api.http.wire.openai_logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)
from server.core.outputs import AdapterUse, GenerationChunk, GenerationResult, Usage


class Extras(TypedDict, total=False):
    """Our own fields: in the answer, or in each choice where there are several; in a stream with its last piece."""

    adapters: list[AdapterUseWire]
    timings: TimingsWire
    scores: dict[str, float]


class CompletionChoice(Extras):
    """One text of a completion, whole or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class ChatMessageWire(TypedDict):
    """The answer's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Extras):
    """One message of a chat completion."""

    index: int
    message: ChatMessageWire
    logprobs: ChatLogprobs | None
    finish_reason: str


class Envelope(TypedDict):
    """What every OpenAI object and every piece of one begins with; ``id`` is the request id."""

    id: str
    created: int
    model: str


class Completion(Envelope, Extras):
    """A completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageWire


class ChatCompletion(Envelope, Extras):
    """A chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageWire
    prompt_logprobs: NotRequired[PromptLogprobs]


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller wants to be told.

    Attributes:
        num_choices: How many answers to each prompt.
        logprobs: Log-probabilities of the tokens.
        prompt_logprobs: The prompt's by themselves.
        echo: The prompt, before the text of a completion.
        opening: What each message of a chat begins with.
        usage: Token counts, in a last piece of their own; only of a stream, as a whole answer always has them.
        continuous_usage: Token counts so far in every piece.
    """

    num_choices: int = 1
    logprobs: bool = False
    prompt_logprobs: bool = False
    echo: bool = False
    opening: str = ""
    usage: bool = False
    continuous_usage: bool = False


def completion(envelope: Envelope, results: Sequence[GenerationResult], told: Told) -> Completion:
    """Translate a completion."""
    choices = [_completion_choice(index, result, told) for index, result in enumerate(results)]
    answer: Completion = {
        "id": envelope["id"],
        "object": "text_completion",
        "created": envelope["created"],
        "model": envelope["model"],
        "choices": choices,
        "usage": usage_wire(usage_of_all([result.usage for result in results], told.num_choices)),
    }
    _add_all_extras(answer, choices, results)
    return answer


def chat_completion(envelope: Envelope, results: Sequence[GenerationResult], told: Told) -> ChatCompletion:
    """Translate a chat completion."""
    choices = [_chat_choice(index, result, told) for index, result in enumerate(results)]
    answer: ChatCompletion = {
        "id": envelope["id"],
        "object": "chat.completion",
        "created": envelope["created"],
        "model": envelope["model"],
        "choices": choices,
        "usage": usage_wire(usage_of_all([result.usage for result in results], told.num_choices)),
    }
    if told.prompt_logprobs and (prompt := results[0].prompt) is not None:
        answer["prompt_logprobs"] = prompt_logprobs(prompt)
    _add_all_extras(answer, choices, results)
    return answer


def usage_of_all(usages: Sequence[Usage], num_choices: int) -> Usage:
    """Add up token counts; a prompt counts once, however many answers it gets."""
    return Usage(
        sum(usage.num_prompt_tokens for usage in usages[::num_choices]),
        sum(usage.num_completion_tokens for usage in usages),
    )


def add_extras(target: Extras, adapters: tuple[AdapterUse, ...], answer: GenerationResult | GenerationChunk) -> None:
    """Put our own fields into an answer, a choice or a last piece."""
    if answer.timings is not None:
        target["adapters"] = adapters_wire(adapters)
        target["timings"] = timings_wire(answer.timings)
    if answer.scores is not None:
        target["scores"] = dict(answer.scores)


def _completion_choice(index: int, result: GenerationResult, told: Told) -> CompletionChoice:
    echoed = result.prompt if told.echo else None
    choice: CompletionChoice = {
        "index": index,
        "text": result.text if echoed is None else echoed.text + result.text,
        "logprobs": completion_logprobs(result.logprobs, prompt=echoed) if told.logprobs else None,
        "finish_reason": result.finish_reason,
    }
    if told.prompt_logprobs and result.prompt is not None:
        choice["prompt_logprobs"] = prompt_logprobs(result.prompt)
    return choice


def _chat_choice(index: int, result: GenerationResult, told: Told) -> ChatChoice:
    return {
        "index": index,
        "message": {"role": "assistant", "content": told.opening + result.text, "refusal": None},
        "logprobs": chat_logprobs(result.logprobs) if told.logprobs else None,
        "finish_reason": result.finish_reason,
    }


def _add_all_extras(answer: Extras, choices: Sequence[Extras], results: Sequence[GenerationResult]) -> None:
    targets = [answer] if len(results) == 1 else choices
    for target, result in zip(targets, results, strict=True):
        add_extras(target, result.adapters, result)
