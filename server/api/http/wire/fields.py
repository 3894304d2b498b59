"""What all request bodies share: strictness, and the sampling fields.

Ranges are not repeated here: ``SamplingParams`` refuses values out of range with one wording for every front end.
A validator may raise a ``MedleyError``; pydantic lets it through and it names the field by itself.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.core.request import MAX_REFERENCES
from server.core.sampling import MAX_STOP_STRINGS, SamplingParams

_DEFAULTS = SamplingParams()
MAX_ADAPTERS = 8


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[list[str], BeforeValidator(_listed), Field(max_length=MAX_STOP_STRINGS)]
AdapterReferences = Annotated[list[str], Field(max_length=MAX_ADAPTERS)]
References = Annotated[list[str], Field(max_length=MAX_REFERENCES)]


class WireModel(BaseModel):
    """A body whose types are not guessed and whose unknown fields are refused; ``null`` means left out."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, body: object) -> object:
        if isinstance(body, dict):
            return {key: value for key, value in body.items() if value is not None}
        return body


class GenerationBody(WireModel):
    """The fields every route that generates takes."""

    temperature: float = Field(_DEFAULTS.temperature, description="0 is greedy; at most 10.")
    top_p: float = Field(_DEFAULTS.top_p, description="Nucleus mass, above 0 and at most 1.")
    top_k: int = Field(_DEFAULTS.top_k, description="Keep the k most likely tokens; 0 keeps all.")
    seed: int | None = Field(None, description="Makes sampling repeatable.")
    stop: StopStrings = Field([], description="A string or strings that end the text and are not part of it.")
    repetition_penalty: float = Field(_DEFAULTS.repetition_penalty, description="1 is off.")
    no_repeat_ngram_size: int = Field(_DEFAULTS.no_repeat_ngram_size, description="0 is off.")
    adapters: AdapterReferences = Field(
        [], description='At most one weight adapter and one soft prompt or prefix: "name", "name:3" or "name@alias".'
    )
    references: References = Field([], description="Reference texts to score the answer against.")
    request_id: str | None = Field(None, description="Your own id; else the x-request-id header, else one is drawn.")
    stream: bool = Field(False, description="Answer in server-sent events.")  # noqa: FBT003

    def sampling(self, max_new_tokens: int, num_logprobs: int | None = None) -> SamplingParams:
        """Return the sampling parameters.

        Raises:
            InvalidArgumentError: If a value is out of range.
        """
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=tuple(self.stop),
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            num_logprobs=num_logprobs,
        )
