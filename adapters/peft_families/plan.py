"""What a family makes of an adapter's config and header: the checked plan by which its values are loaded.

Knows no family. Plans are immutable; any thread may load by one, each with its own reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from adapters.adapter_weights import Float32Array, LinearChange, PrefixWeights, SoftPromptWeights
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_tensors import TensorReader
from adapters.safetensors_file import TensorEntry


@dataclass(frozen=True)
class WeightPlan:
    """An adapter that changes layers, checked but for its values.

    Attributes:
        kind: What it is.
        linears: Module path → what loads its change.
        norms: Path of a norm → what loads its gamma.
        rank: Largest rank it takes on the device; 0 where it is no LoRA.
        rank_note: Where the rank comes from, for messages, if it is not the one in the config.
    """

    kind: AdapterKind
    linears: Mapping[str, Callable[[TensorReader], LinearChange]] = field(default_factory=dict)
    norms: Mapping[str, Callable[[TensorReader], Float32Array]] = field(default_factory=dict)
    rank: int = 0
    rank_note: str = ""


@dataclass(frozen=True)
class PromptPlan:
    """An adapter that comes before the text, checked but for its values.

    Attributes:
        kind: What it is.
        num_virtual_tokens: P.
        load: What loads it.
    """

    kind: AdapterKind
    num_virtual_tokens: int
    load: Callable[[TensorReader], SoftPromptWeights | PrefixWeights]


class Family(Protocol):
    """The config of one adapter of a family, checked by itself."""

    @property
    def base_model(self) -> str:
        """Name of the base, for people; empty when unknown."""
        ...

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan | PromptPlan:
        """Check names and shapes of the tensors against config and base; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        ...
