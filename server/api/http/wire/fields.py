"""What all request bodies share: strictness, and the sampling fields.

Ranges are not repeated here: ``SamplingParams`` refuses values out of range with one wording for every front end.
A validator may raise a ``MedleyError``; pydantic lets it through and it names the field by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from server.core.errors import InvalidArgumentError
from server.core.request import FIRST_PRIORITY, LAST_PRIORITY, MAX_REFERENCES, GenerationRequest
from server.core.sampling import MAX_STOP_STRINGS, SamplingParams

_DEFAULTS = SamplingParams()
MAX_ADAPTERS = 8

Neutral = Mapping[str, tuple[object, ...]]
"""Names of fields that we know and do not honour, each with the values that change nothing beside ``null``."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[str],
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], Field(max_length=MAX_STOP_STRINGS)]),
    Field(max_length=MAX_STOP_STRINGS),
]
AdapterReferences = Annotated[list[str], Field(max_length=MAX_ADAPTERS)]
References = Annotated[list[str], Field(max_length=MAX_REFERENCES)]


class WireModel(BaseModel):
    """A body whose types are not guessed and whose unknown fields are refused; ``null`` means left out.

    A field in ``NEUTRAL`` is refused by name unless its value changes nothing, one in ``DROPPED`` never changes an
    answer; neither reaches the model.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    NEUTRAL: ClassVar[Neutral] = {}
    DROPPED: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _settle_what_is_no_field(cls, body: object) -> object:
        if isinstance(body, dict):
            return {key: value for key, value in body.items() if value is not None and cls._is_field(key, value)}
        return body

    @classmethod
    def _is_field(cls, key: str, value: object) -> bool:
        harmless = cls.NEUTRAL.get(key)
        if harmless is None:
            return key not in cls.DROPPED
        # By type too: for Python, true is 1 and false is 0.
        if not any(value == other and type(value) is type(other) for other in harmless):
            raise InvalidArgumentError(f"{key} is not supported with this value; leave it out", param=key)
        return False


class SharedSampling(TypedDict):
    """The sampling parameters that every route which generates takes."""

    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    repetition_penalty: float
    no_repeat_ngram_size: int


class GenerationBody(WireModel, ABC):
    """The fields every route that generates takes.

    ``WIRE_NAMES`` has what callers call the fields they have other names for than core.
    """

    WIRE_NAMES: ClassVar[Mapping[str, str]] = {}

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
    routing_key: str | None = Field(
        None, description="Requests with the same key, as those of one user, stay on one side of a rollout."
    )
    priority: int = Field(
        0,
        description=f"From {FIRST_PRIORITY}, served before others, to {LAST_PRIORITY}, behind them; a key may not ask "
        "for every one.",
    )
    stream: bool = Field(False, description="Answer in server-sent events.")  # noqa: FBT003

    @abstractmethod
    def requests(
        self, request_id: str, adapters: tuple[str, ...], deadline_s: float | None
    ) -> Sequence[GenerationRequest]:
        """Return what is asked for: one request for each answer, all under the call's id.

        Raises:
            InvalidArgumentError: If a value is out of range, or excludes another.
        """

    def wire_name(self, param: str) -> str:
        """Return what the caller calls the field that core calls ``param``."""
        return self.WIRE_NAMES.get(param, param)

    def shared_sampling(self) -> SharedSampling:
        """Return these fields as ``SamplingParams`` takes them."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": tuple(self.stop),
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
