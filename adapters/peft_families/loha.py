"""LoHa: the elementwise product of two low-rank changes, served as the LoRA of rank r² that equals it.

(w1a·w1b) ⊙ (w2a·w2b) = B·A, where column (i, j) of B is w1a's column i times w2a's column j, and row (i, j) of A is
w1b's row i times w2b's row j. The limit on ranks holds for r², which is what the adapter costs. Any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/loha/layer.py; arXiv:2108.06098, where the rank of
    such products is shown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import LinearChange, LoraModule
from adapters.errors import InvalidAdapterError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import (
    ABOUT_ORIGIN,
    ABOUT_PLACES,
    base_model_of,
    count,
    first_match,
    number,
    patterns,
    refuse_other_fields,
)
from adapters.peft_families.lora import pair_rank
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, layers_of, servable
from adapters.safetensors_file import TensorEntry

W1A, W1B, W2A, W2B = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
_FIELDS = (
    ABOUT_ORIGIN
    | ABOUT_PLACES
    | {"r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "init_weights"}
    # T5 has no convolutions.
    | {"use_effective_conv2d"}
)


@dataclass(frozen=True)
class Loha:
    """What scales and sizes a LoHa.

    Attributes:
        rank: r where no pattern matches.
        alpha: alpha where no pattern matches; s is alpha/r.
        rank_pattern: Pattern of module path → r, in the file's order.
        alpha_pattern: Pattern of module path → alpha, in the file's order.
        base_model: Name of the base, for people.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is missing or out of range.
            UnsupportedAdapterError: If it switches on something that is not computed.
            AdapterTooLargeError: If it has too many patterns.
        """
        refuse_other_fields(raw, _FIELDS)
        return cls(
            rank=count(raw.get("r"), "r"),
            alpha=number(raw.get("alpha"), "alpha"),
            rank_pattern=patterns(raw, "rank_pattern", count),
            alpha_pattern=patterns(raw, "alpha_pattern", number),
            base_model=base_model_of(raw),
        )

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        linears, ranks = {}, []
        for path, names in layers_of(entries, "LOHA", {W1A, W1B, W2A, W2B}).items():
            found = {pair_rank(entries, path, names[b], names[a], base) for a, b in ((W1A, W1B), (W2A, W2B))}
            stated = first_match(self.rank_pattern, path, self.rank)
            if found != {stated}:
                raise InvalidAdapterError(f"{path} has rank {max(found)}, but {CONFIG_FILE} says {stated}")
            scaling = first_match(self.alpha_pattern, path, self.alpha) / stated
            linears[path] = partial(_load, names, scaling)
            ranks.append(stated)
        rank = max(ranks)
        note = f"a LoHa of rank {rank} is served as a LoRA of rank {rank}²"
        return WeightPlan(AdapterKind.LORA, linears, rank=rank * rank, rank_note=note)


def _load(names: Mapping[str, str], scaling: float, reader: TensorReader) -> LinearChange:
    w1a, w1b, w2a, w2b = (reader.load(names[part]) for part in (W1A, W1B, W2A, W2B))
    lora_a = (w1b[:, None, :] * w2b[None, :, :]).reshape(-1, w1b.shape[1])
    lora_b = (w1a[:, :, None] * w2a[:, None, :]).reshape(len(w1a), -1)
    return LinearChange(lora=LoraModule(servable(lora_a, names[W1B]), servable(lora_b, names[W1A], scaling), scaling))
