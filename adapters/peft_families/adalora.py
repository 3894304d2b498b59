"""AdaLoRA: a LoRA whose ranks are weighed by singular values E, some of them pruned away; served as a LoRA.

A' = E ⊙ A, and s = alpha / (init_r + 1e-5) also where ranks were pruned, as PEFT keeps it. A layer pruned to rank 0 is
left alone. Any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/adalora/layer.py; arXiv:2303.10512.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import LinearChange, LoraModule
from adapters.errors import InvalidAdapterError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, ABOUT_PLACES, base_model_of, count, number, refuse_other_fields
from adapters.peft_families.lora import INERT_FIELDS, check_init, pair_rank
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, check_fits, layers_of, linear_shape, servable
from adapters.safetensors_file import TensorEntry

A, B, E = "lora_A", "lora_B", "lora_E"
_FIELDS = (
    ABOUT_ORIGIN
    | ABOUT_PLACES
    | INERT_FIELDS
    | {"init_r", "lora_alpha", "init_lora_weights"}
    # AdaLoRA takes no notice of r, and its rank_pattern says which ranks are left, as the tensors do.
    | {"r", "rank_pattern", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"}
)
_RANK_OFFSET = 1e-5


@dataclass(frozen=True)
class AdaLora:
    """What scales and sizes an AdaLoRA.

    Attributes:
        init_rank: Rank of every layer before any was pruned.
        lora_alpha: alpha; where it is not above 0, the layer's own rank stands for it.
        base_model: Name of the base, for people.
    """

    init_rank: int
    lora_alpha: float
    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is missing or out of range.
            UnsupportedAdapterError: If it switches on something that is not computed.
        """
        refuse_other_fields(raw, _FIELDS)
        check_init(raw)
        return cls(count(raw.get("init_r"), "init_r"), number(raw.get("lora_alpha"), "lora_alpha"), base_model_of(raw))

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        linears, ranks = {}, []
        for path, names in layers_of(entries, "ADALORA", {A, B, E}).items():
            out, into = linear_shape(base, path)
            if [entries[names[part]].shape for part in (A, B, E)] == [(0, into), (out, 0), (0, 1)]:
                continue
            rank = pair_rank(entries, path, names[A], names[B], base)
            if rank > self.init_rank:
                raise InvalidAdapterError(f"{path} has rank {rank}, but {CONFIG_FILE} says init_r {self.init_rank}")
            check_fits(entries, names[E], (rank, 1), base)
            alpha = self.lora_alpha if self.lora_alpha > 0 else float(rank)
            linears[path] = partial(_load, names, alpha / (self.init_rank + _RANK_OFFSET))
            ranks.append(rank)
        if not ranks:
            raise InvalidAdapterError("every layer of the adapter was pruned to rank 0; it changes nothing")
        return WeightPlan(AdapterKind.LORA, linears, rank=max(ranks))


def _load(names: Mapping[str, str], scaling: float, reader: TensorReader) -> LinearChange:
    lora_a = servable(reader.load(names[A]) * reader.load(names[E]), names[E])
    return LinearChange(lora=LoraModule(lora_a, reader.load(names[B], scaling), scaling))
