"""OpenAI's request bodies, with our fields beside theirs.

A known OpenAI field that we cannot honour is refused by name unless it has the value that changes nothing; a known one
that has no bearing on the answer is dropped; an unknown one is refused as a likely mistake.

Defaults that differ from OpenAI's: temperature 0 (greedy), and as many new tokens as ``/v1/summarize`` gives.

Source:
    Field names and meanings: https://platform.openai.com/docs/api-reference/completions and ``/chat``.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.api.http.wire.fields import GenerationBody, WireModel
from server.core.errors import InvalidArgumentError
from server.core.sampling import SamplingParams

_DEFAULT_NEW_TOKENS = SamplingParams().max_new_tokens
_MAX_MESSAGES = 1024
# For the books of OpenAI's own service; they never change an answer.
_DROPPED = frozenset(
    {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
_NEUTRAL_EVERYWHERE: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}


class StreamOptions(BaseModel):
    """What a streaming caller may ask for."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class OpenAIBody(GenerationBody):
    """What both OpenAI routes take."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = _NEUTRAL_EVERYWHERE

    model: str = Field(description='The base\'s id, one adapter reference, or two joined by "+".')
    max_tokens: int = _DEFAULT_NEW_TOKENS
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _settle_foreign_fields(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        for name in cls.NEUTRAL.keys() & body.keys():
            if body[name] is not None and body[name] not in cls.NEUTRAL[name]:
                raise InvalidArgumentError(f"{name} is not supported; leave it out", param=name)
        return {key: value for key, value in body.items() if key not in _DROPPED and key not in cls.NEUTRAL}


class CompletionBody(OpenAIBody):
    """A prompt to continue as it is: no template."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **_NEUTRAL_EVERYWHERE,
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: str = Field(description="A string, or a list of one string.")
    logprobs: int | None = Field(None, description="Report this many alternatives per token.")

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_text(cls, prompt: object) -> object:
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise InvalidArgumentError(
                "prompt must be one string; several prompts need several requests, token ids are not taken",
                param="prompt",
            )
        return prompt


class TextPart(WireModel):
    """A piece of a message; only text is taken."""

    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    """One message. Its role does not change how it is read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart] = Field(description="A string, or a list of text parts.")
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatBody(OpenAIBody):
    """A conversation. A summarizer answers about it: its texts, one under the other, go into the prompt template."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **_NEUTRAL_EVERYWHERE,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, description="The newer name of max_tokens; it wins.")
    logprobs: bool = False
    top_logprobs: int = Field(0, description="How many alternatives per token; needs logprobs.")

    @property
    def text(self) -> str:
        """The texts of all messages in their order, one under the other, whatever their roles."""
        return "\n".join(part.text for message in self.messages for part in message.content)

    @property
    def num_new_tokens(self) -> int:
        """Most tokens to generate, under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report per token.

        Raises:
            InvalidArgumentError: If alternatives are asked for without ``logprobs``.
        """
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgumentError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return self.top_logprobs if self.logprobs else None
