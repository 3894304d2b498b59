"""How to choose tokens, as callers of the OpenAI routes say it: OpenAI's names, and vLLM's beside them.

Which of them the engine honours, it says itself: one that it has not is refused by the service, by name.

Source:
    https://platform.openai.com/docs/api-reference/completions/create;
    https://docs.vllm.ai/en/stable/serving/openai_compatible_server/#extra-parameters.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from server.api.http.wire.fields import GenerationBody
from server.api.http.wire.openai_formats import ResponseFormat, StructuredOutputs
from server.core.errors import InvalidArgumentError
from server.core.sampling import MAX_BIASED_TOKENS, MAX_STOP_TOKENS, Grammar, SamplingParams

_DEFAULTS = SamplingParams()
_TokenText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class OpenAISampling(GenerationBody):
    """The sampling parameters that both OpenAI routes take beside those that every route does."""

    WIRE_NAMES: ClassVar[Mapping[str, str]] = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

    seed: int | None = Field(None, description="Makes sampling repeatable; -1 draws one.")
    top_k: int = Field(_DEFAULTS.top_k, description="Keep the k most likely tokens; 0 or -1 keeps all.")
    min_p: float = Field(_DEFAULTS.min_p, description="Keep tokens at least this share as likely as the likeliest.")
    min_tokens: int = Field(_DEFAULTS.min_new_tokens, description="No end of the text before this many tokens.")
    ignore_eos: bool = Field(_DEFAULTS.ignore_eos, description="Go on behind the end-of-sequence token.")
    stop_token_ids: list[int] = Field([], max_length=MAX_STOP_TOKENS, description="Tokens that end the text.")
    presence_penalty: float = Field(_DEFAULTS.presence_penalty, description="From -2 to 2; 0 is off.")
    frequency_penalty: float = Field(_DEFAULTS.frequency_penalty, description="From -2 to 2; 0 is off.")
    logit_bias: dict[_TokenText, float] = Field(
        {}, max_length=MAX_BIASED_TOKENS, description="By token id: what is added to its logit, from -100 to 100."
    )
    prompt_logprobs: int | None = Field(
        None, description="Report the prompt's log-probabilities, with this many alternatives; not in a stream."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def wire_name(self, param: str) -> str:
        """Return what the caller calls the field that core calls ``param``."""
        if param == "grammar":
            return "response_format" if self.structured_outputs is None else "structured_outputs"
        return super().wire_name(param)

    def sampling(self, max_new_tokens: int | None, num_logprobs: int | None, *, echo: bool = False) -> SamplingParams:
        """Return the sampling parameters.

        Args:
            max_new_tokens: Most tokens to generate, or None for as many as fit.
            num_logprobs: How many alternatives to report per token, if any are.
            echo: Whether the prompt's tokens are reported like those generated.

        Raises:
            InvalidArgumentError: If a value is out of range, or excludes another.
        """
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidArgumentError("prompt_logprobs are not told in a stream", param="prompt_logprobs")
        shared = self.shared_sampling()
        shared["seed"] = None if self.seed == -1 else self.seed
        shared["top_k"] = 0 if self.top_k == -1 else self.top_k
        return SamplingParams(
            **shared,
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            min_p=self.min_p,
            stop_token_ids=tuple(self.stop_token_ids),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            grammar=self._grammar(),
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_logprobs if echo and self.prompt_logprobs is None else self.prompt_logprobs,
        )

    def _grammar(self) -> Grammar | None:
        from_format = None if self.response_format is None else self.response_format.grammar()
        if self.structured_outputs is None:
            return from_format
        if from_format is not None:
            raise InvalidArgumentError(
                "response_format and structured_outputs exclude each other", param="structured_outputs"
            )
        return self.structured_outputs.grammar()
