"""The body of a chat completion; vLLM's fields and ours stand beside OpenAI's.

Source:
    Field names and meanings: https://platform.openai.com/docs/api-reference/chat/create;
    https://docs.vllm.ai/en/stable/serving/openai_compatible_server/.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from server.api.http.wire.fields import Neutral, WireModel
from server.api.http.wire.openai_bodies import OpenAIBody
from server.api.http.wire.openai_foreign import CHAT_NEUTRAL
from server.core.errors import InvalidArgumentError
from server.core.request import Conversation, GenerationRequest, Message

_MAX_MESSAGES = 1024


class TextPart(WireModel):
    """A piece of a message; only text is taken."""

    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    """One message."""

    NEUTRAL: ClassVar[Neutral] = {"annotations": ([],), "audio": (), "function_call": (), "tool_calls": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart] = Field(description="A string, or a list of text parts.")
    name: str | None = None

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart])
    @classmethod
    def _as_parts(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """The parts' texts, one under the other."""
        return "\n".join(part.text for part in self.content)


class ChatBody(OpenAIBody):
    """A conversation: the base's chat template makes a prompt of it.

    Where the base has none, as a summarizer, the messages' texts, one under the other, go into the prompt template.
    """

    NEUTRAL: ClassVar[Neutral] = CHAT_NEUTRAL
    WIRE_NAMES: ClassVar[Mapping[str, str]] = {**OpenAIBody.WIRE_NAMES, "logprobs": "top_logprobs", "text": "messages"}

    messages: list[ChatMessage] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_tokens: int | None = Field(None, description="Most tokens to generate; else as many as fit.")
    max_completion_tokens: int | None = Field(None, description="The newer name of max_tokens; it wins.")
    logprobs: bool = False
    top_logprobs: int = Field(0, description="How many alternatives per token; needs logprobs.")
    echo: bool = Field(False, description="Begin the answer with the last message, if that is an assistant's.")  # noqa: FBT003
    add_generation_prompt: bool | None = Field(None, description="Open the answer's turn; done unless a turn goes on.")
    continue_final_message: bool = Field(False, description="Go on with the last message, and open no turn.")  # noqa: FBT003
    chat_template_kwargs: dict[str, object] = Field({}, description="Further names the chat template knows.")

    @property
    def opening(self) -> str:
        """What an answer begins with before anything is generated."""
        last = self.messages[-1]
        return last.text if self.echo and last.role == "assistant" else ""

    def requests(
        self, request_id: str, adapters: tuple[str, ...], deadline_s: float | None
    ) -> tuple[GenerationRequest, ...]:
        """Return ``n`` requests. See the base.

        Raises:
            InvalidArgumentError: If a value is out of range, or excludes another.
        """
        longest = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        request = GenerationRequest(
            request_id=request_id,
            conversation=self._conversation(),
            stream=self.stream,
            adapters=adapters,
            sampling=self.sampling(longest, self._num_logprobs()),
            references=tuple(self.references),
            deadline_s=deadline_s,
            routing_key=self.dealt_by,
            priority=self.priority,
        )
        return self.copied([request])

    def wire_name(self, param: str) -> str:
        """Return what the caller calls the field that core calls ``param``."""
        is_by_newer_name = param == "max_new_tokens" and self.max_completion_tokens is not None
        return "max_completion_tokens" if is_by_newer_name else super().wire_name(param)

    def _conversation(self) -> Conversation:
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidArgumentError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        is_opened = self.add_generation_prompt is not False and not self.continue_final_message
        return Conversation(
            tuple(Message(message.role, message.text) for message in self.messages),
            add_generation_prompt=is_opened,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs,
        )

    def _num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgumentError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return self.top_logprobs if self.logprobs else None
