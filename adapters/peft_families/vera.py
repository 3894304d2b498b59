"""VeRA: two random matrices shared by all layers and two learned vectors for each; served as a LoRA.

A' = λ_d ⊙ A and B' = λ_b ⊙ B, rows of each, cut to the layer's size. The shared matrices must be in the file: PEFT can
also draw them anew from a seed, by a generator that is torch's own and not the same on every system. Any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/vera/layer.py; arXiv:2310.11454.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import LinearChange, LoraModule
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, ABOUT_PLACES, base_model_of, count, refuse_other_fields
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, check_fits, layers_of, linear_shape, matrix_shape, servable
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

SHARED_A, SHARED_B = "base_model.vera_A", "base_model.vera_B"
LAMBDA_B, LAMBDA_D = "vera_lambda_b", "vera_lambda_d"
_FIELDS = (
    ABOUT_ORIGIN
    | ABOUT_PLACES
    | {"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights"}
)


@dataclass(frozen=True)
class Vera:
    """What sizes a VeRA.

    Attributes:
        rank: R.
        base_model: Name of the base, for people.
    """

    rank: int
    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is missing or out of range.
            UnsupportedAdapterError: If it switches on something that is not computed.
        """
        refuse_other_fields(raw, _FIELDS)
        return cls(count(raw.get("r"), "r"), base_model_of(raw))

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            UnsupportedAdapterError: If the shared matrices are not in the file.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        layers = layers_of(entries, "VERA", {LAMBDA_B, LAMBDA_D}, shared={SHARED_A, SHARED_B})
        if not {SHARED_A, SHARED_B} <= entries.keys():
            raise UnsupportedAdapterError(
                "the shared matrices vera_A and vera_B are not in the file; save the adapter with save_projection=True"
            )
        if not layers:
            raise InvalidAdapterError(f"the weights file has {SHARED_A} and {SHARED_B} but no layer's vectors")
        (rank, width), (height, rank_b) = matrix_shape(entries, SHARED_A), matrix_shape(entries, SHARED_B)
        if not rank == rank_b == self.rank:
            raise InvalidAdapterError(f"vera_A has rank {rank}, vera_B {rank_b}, but {CONFIG_FILE} says {self.rank}")
        # They are read once a layer: ones that no base of this kind could need would be read over and over.
        largest_out, largest_in = (max(sizes) for sizes in zip(*base.linear_shapes.values(), strict=True))
        if height > largest_out or width > largest_in:
            raise WrongBaseError(f"the shared matrices are larger than any layer of {show(base.model_id)}")
        linears = {}
        for path, names in layers.items():
            out, into = linear_shape(base, path)
            if width < into or height < out:
                raise WrongBaseError(f"the shared matrices are too small for {path} of {show(base.model_id)}")
            check_fits(entries, names[LAMBDA_B], (out,), base)
            check_fits(entries, names[LAMBDA_D], (rank,), base)
            linears[path] = partial(_load, names, out, into)
        return WeightPlan(AdapterKind.LORA, linears, rank=rank)


def _load(names: Mapping[str, str], out: int, into: int, reader: TensorReader) -> LinearChange:
    # Read anew for each layer, so that no more than one layer's worth is held.
    shared_a, shared_b = reader.load(SHARED_A)[:, :into], reader.load(SHARED_B)[:out]
    lora_a = shared_a * reader.load(names[LAMBDA_D])[:, None]
    lora_b = shared_b * reader.load(names[LAMBDA_B])[:, None]
    return LinearChange(
        lora=LoraModule(servable(lora_a, names[LAMBDA_D]), servable(lora_b, names[LAMBDA_B]), scaling=1.0)
    )
