"""What both OpenAI routes read, and the body of a completion; vLLM's fields and ours stand beside OpenAI's.

Defaults that differ from OpenAI's: temperature 0 (greedy), and as many tokens of a completion as ``/v1/summarize``
gives.

Source:
    Field names and meanings: https://platform.openai.com/docs/api-reference/completions/create;
    https://docs.vllm.ai/en/stable/serving/openai_compatible_server/.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from server.api.http.wire import openai_foreign
from server.api.http.wire.fields import Neutral, WireModel
from server.api.http.wire.openai_answers import Told
from server.api.http.wire.openai_sampling import OpenAISampling
from server.core.errors import InvalidArgumentError
from server.core.request import Echo, GenerationRequest
from server.core.sampling import DEFAULT_NEW_TOKENS
from server.service.several import copies

MAX_PER_CALL = 1024
"""Most answers that one call can ask for at all; the operator's limit is what counts, and is told by the service."""
# Failing fast: whether a list is of texts or of tokens shows in its first item.
_TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
_SeveralTexts = Annotated[list[str], Field(min_length=1, max_length=MAX_PER_CALL, fail_fast=True)]
_SeveralTokenIds = Annotated[list[_TokenIds], Field(min_length=1, max_length=MAX_PER_CALL, fail_fast=True)]


class StreamOptions(WireModel):
    """What a streaming caller may ask for."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = Field(False, description="Token counts in a last piece of their own.")  # noqa: FBT003
    continuous_usage_stats: bool = Field(False, description="Token counts so far in every piece.")  # noqa: FBT003


class OpenAIBody(OpenAISampling):
    """What both OpenAI routes take."""

    DROPPED = openai_foreign.DROPPED

    model: str | None = Field(
        None, description='The base\'s id, one adapter reference, or two joined by "+"; else the base.'
    )
    user: str | None = Field(None, description="Whom the request is for: the routing_key, unless that is given.")
    n: int = Field(1, ge=1, le=MAX_PER_CALL, description="How many answers to each prompt.")
    stream_options: StreamOptions = StreamOptions()

    @property
    def dealt_by(self) -> str:
        """What the request is dealt by in a rollout; may be empty."""
        return self.routing_key or self.user or ""

    def copied(self, requests: Iterable[GenerationRequest]) -> tuple[GenerationRequest, ...]:
        """Return each request ``n`` times.

        Raises:
            InvalidArgumentError: If that is far too many.
        """
        requests = tuple(requests)
        if len(requests) * self.n > MAX_PER_CALL:
            raise InvalidArgumentError(f"one call may ask for at most {MAX_PER_CALL} answers", param="n")
        return tuple(copy for request in requests for copy in copies(request, self.n))

    def told(self, *, logprobs: bool, echo: bool = False, opening: str = "") -> Told:
        """Return what the caller wants to be told, and what only one of the routes knows about it."""
        options = self.stream_options
        return Told(
            num_choices=self.n,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs is not None,
            echo=echo,
            opening=opening,
            usage=options.include_usage,
            continuous_usage=options.include_usage and options.continuous_usage_stats,
        )


def _prompt_or_refusal(prompt: object, validate: ValidatorFunctionWrapHandler) -> object:
    try:
        return validate(prompt)
    except ValidationError:
        raise InvalidArgumentError(
            "prompt must be a string, a list of strings, a list of token ids or a list of lists of token ids, "
            f"none empty and at most {MAX_PER_CALL} in all",
            param="prompt",
        ) from None


class CompletionBody(OpenAIBody):
    """Prompts to continue as they are: no template."""

    NEUTRAL: ClassVar[Neutral] = openai_foreign.COMPLETION_NEUTRAL
    WIRE_NAMES: ClassVar[Mapping[str, str]] = {
        **OpenAIBody.WIRE_NAMES,
        "prompt_token_ids": "prompt",
        "text": "prompt",
    }

    prompt: Annotated[str | _SeveralTexts | _TokenIds | _SeveralTokenIds, WrapValidator(_prompt_or_refusal)] = Field(
        description="One text or several, each as a string or as token ids."
    )
    max_tokens: int = Field(DEFAULT_NEW_TOKENS, description="Most tokens to generate; 0 only together with echo.")
    best_of: int | None = Field(None, description="The same as n, if anything.")
    echo: bool = Field(False, description="Begin the text, and its log-probabilities, with the prompt.")  # noqa: FBT003
    logprobs: int | None = Field(None, description="Report this many alternatives per token.")
    add_special_tokens: bool = Field(True, description="Put the tokens around a text that the base expects.")  # noqa: FBT003

    def requests(
        self, request_id: str, adapters: tuple[str, ...], deadline_s: float | None
    ) -> tuple[GenerationRequest, ...]:
        """Return ``n`` requests for the first prompt, then those for the next. See the base.

        Raises:
            InvalidArgumentError: If a value is out of range, or excludes another.
        """
        if self.best_of not in (None, self.n):
            raise InvalidArgumentError("best_of must be the same as n", param="best_of")
        is_only_echo = self.echo and self.max_tokens == 0
        sampling = self.sampling(1 if is_only_echo else self.max_tokens, self.logprobs, echo=self.echo)
        return self.copied(
            GenerationRequest(
                request_id=request_id,
                text=prompt if isinstance(prompt, str) else "",
                prompt_token_ids=() if isinstance(prompt, str) else tuple(prompt),
                echo=Echo.ONLY if is_only_echo else Echo.BEFORE if self.echo else Echo.NO,
                stream=self.stream,
                adapters=adapters,
                sampling=sampling,
                apply_template=False,
                add_special_tokens=self.add_special_tokens,
                references=tuple(self.references),
                deadline_s=deadline_s,
                routing_key=self.dealt_by,
                priority=self.priority,
            )
            for prompt in self._prompts()
        )

    def wire_name(self, param: str) -> str:
        """Return what the caller calls the field that core calls ``param``."""
        is_by_echo = param == "prompt_logprobs" and self.prompt_logprobs is None
        return "echo" if is_by_echo else super().wire_name(param)

    def _prompts(self) -> Sequence[str | list[int]]:
        prompt = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
