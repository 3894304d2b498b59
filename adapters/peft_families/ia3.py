"""IA3: one vector per layer, times its output (keys and values) or its input (feed-forward). Any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/ia3/layer.py; arXiv:2205.05638.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_weights import LinearChange
from adapters.errors import WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, ABOUT_PLACES, base_model_of, refuse_other_fields
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, layers_of, linear_shape, matrix_shape
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

VECTOR = "ia3_l"
_FIELDS = ABOUT_ORIGIN | ABOUT_PLACES | {"feedforward_modules", "init_ia3_weights"}


@dataclass(frozen=True)
class Ia3:
    """An IA3; which side of a layer a vector scales is told by its shape, (out, 1) or (1, in).

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
        refuse_other_fields(raw, _FIELDS)
        return cls(base_model_of(raw))

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If a tensor does not belong or is no matrix.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        linears = {}
        for path, names in layers_of(entries, "IA3", {VECTOR}).items():
            out, into = linear_shape(base, path)
            shape = matrix_shape(entries, names[VECTOR])
            if shape not in ((out, 1), (1, into)):
                raise WrongBaseError(
                    f"{show(names[VECTOR])} has shape {list(shape)}, which does not fit {show(base.model_id)}: "
                    f"{[out, 1]} for the output or {[1, into]} for the input is needed"
                )
            linears[path] = partial(_load, names[VECTOR], shape == (out, 1))
        return WeightPlan(AdapterKind.IA3, linears)


def _load(name: str, scales_output: bool, reader: TensorReader) -> LinearChange:
    vector = reader.load(name).reshape(-1)
    return LinearChange(output_scale=vector) if scales_output else LinearChange(input_scale=vector)
