"""LayerNorm tuning: norms whose gamma stands in place of the base's. Any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/ln_tuning/layer.py; arXiv:2312.11420.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_weights import Float32Array
from adapters.errors import WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, ABOUT_PLACES, base_model_of, refuse_other_fields
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, check_fits, layers_of
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

GAMMA = "ln_tuning_layers.weight"


@dataclass(frozen=True)
class LayerNormTuning:
    """Tuned norms.

    Attributes:
        base_model: Name of the base, for people.
    """

    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is out of range.
            UnsupportedAdapterError: If it switches on something that is not computed.
        """
        refuse_other_fields(raw, ABOUT_ORIGIN | ABOUT_PLACES)
        return cls(base_model_of(raw))

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If a tensor does not belong.
            WrongBaseError: If the base has no such norm, or one of another width.
        """
        norms = {}
        for path, names in layers_of(entries, "LN_TUNING", {GAMMA}).items():
            if path not in base.norm_paths:
                raise WrongBaseError(f"{show(base.model_id)} has no norm {show(path)} for an adapter")
            check_fits(entries, names[GAMMA], (base.d_model,), base)
            norms[path] = partial(_load, names[GAMMA])
        return WeightPlan(AdapterKind.NORM, norms=norms)


def _load(name: str, reader: TensorReader) -> Float32Array:
    return reader.load(name)
