"""LoRA and what PEFT builds into it: rsLoRA, rank and alpha patterns, DoRA, and a bias beside B.

Any thread. R is the rank of a layer's pair.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/config.py and, beside it, ``layer.py``;
    LoRA arXiv:2106.09685, rank-stabilized LoRA arXiv:2312.03732, DoRA arXiv:2402.09353.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import LinearChange, LoraModule
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import (
    ABOUT_ORIGIN,
    ABOUT_PLACES,
    base_model_of,
    count,
    first_match,
    flag,
    number,
    patterns,
    refuse_other_fields,
)
from adapters.peft_families.plan import WeightPlan
from adapters.peft_tensors import TensorReader, check_fits, layers_of, linear_shape, matrix_shape
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

A, B, BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
# These only tune switches that must be off, or say how A and B were begun.
INERT_FIELDS = frozenset({"lora_dropout", "qalora_group_size", "megatron_core", "ensure_weight_tying", "eva_config"})
_FIELDS = (
    ABOUT_ORIGIN
    | ABOUT_PLACES
    | INERT_FIELDS
    | {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "init_lora_weights"}
)
_INITS_THAT_KEEP_THE_BASE = {"gaussian", "eva", "orthogonal"}


@dataclass(frozen=True)
class Lora:
    """What scales and sizes a LoRA.

    Attributes:
        rank: Rank where no pattern matches.
        lora_alpha: alpha where no pattern matches.
        rank_pattern: Pattern of module path → rank, in the file's order.
        alpha_pattern: Pattern of module path → alpha, in the file's order.
        use_rslora: Whether s is alpha/√R instead of alpha/R.
        use_dora: Whether every layer has a magnitude.
        lora_bias: Whether every layer has a bias beside B.
        base_model: Name of the base, for people.
    """

    rank: int
    lora_alpha: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
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
        check_init(raw)
        if flag(raw, "use_dora") and flag(raw, "lora_bias"):
            raise UnsupportedAdapterError(
                "use_dora with lora_bias is not supported, nor in PEFT; train with one of them"
            )
        return cls(
            rank=count(raw.get("r"), "r"),
            lora_alpha=number(raw.get("lora_alpha"), "lora_alpha"),
            rank_pattern=patterns(raw, "rank_pattern", count),
            alpha_pattern=patterns(raw, "alpha_pattern", number),
            use_rslora=flag(raw, "use_rslora"),
            use_dora=flag(raw, "use_dora"),
            lora_bias=flag(raw, "lora_bias"),
            base_model=base_model_of(raw),
        )

    def rank_of(self, path: str) -> int:
        """Return the rank at a module path; the first pattern that matches wins."""
        return first_match(self.rank_pattern, path, self.rank)

    def scaling_of(self, path: str, rank: int) -> float:
        """Return s in y = Wx + s·B(Ax) at a module path whose pair has that rank."""
        alpha = first_match(self.alpha_pattern, path, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> WeightPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            WrongBaseError: If the base has no such layer, or one of another shape.
        """
        parts = {A, B} | ({MAGNITUDE} if self.use_dora else set()) | ({BIAS} if self.lora_bias else set())
        linears, ranks = {}, []
        for path, names in layers_of(entries, "LORA", parts).items():
            rank = pair_rank(entries, path, names[A], names[B], base)
            if rank != self.rank_of(path):
                raise InvalidAdapterError(f"{path} has rank {rank}, but {CONFIG_FILE} says {self.rank_of(path)}")
            for vector in names.keys() & {BIAS, MAGNITUDE}:
                check_fits(entries, names[vector], (linear_shape(base, path)[0],), base)
            linears[path] = partial(_load, names, self.scaling_of(path, rank))
            ranks.append(rank)
        return WeightPlan(AdapterKind.LORA, linears, rank=max(ranks))


def check_init(raw: Mapping[str, object]) -> None:
    """Accept a way of beginning A and B that leaves the base alone.

    Raises:
        UnsupportedAdapterError: If it changes the base, so that A and B alone are not the adapter.
    """
    init = raw.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in _INITS_THAT_KEEP_THE_BASE:
        raise UnsupportedAdapterError(
            f"init_lora_weights {show(init)} changes the base's weights; convert the adapter to a plain LoRA in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def pair_rank(entries: Mapping[str, TensorEntry], path: str, a: str, b: str, base: BaseModelSpec) -> int:
    """Return the rank of the pair of tensors named ``a``, (R, in), and ``b``, (out, R), that fits its layer.

    Raises:
        InvalidAdapterError: If they are no matrices, or differ in rank.
        WrongBaseError: If the base has no such layer, or one of another shape.
    """
    shape_a, shape_b = matrix_shape(entries, a), matrix_shape(entries, b)
    out, into = linear_shape(base, path)
    if shape_a[0] != shape_b[1]:
        raise InvalidAdapterError(f"{path}: lora_A {list(shape_a)} and lora_B {list(shape_b)} differ in rank")
    if (shape_b[0], shape_a[1]) != (out, into):
        raise WrongBaseError(
            f"{path}: lora_A {list(shape_a)} and lora_B {list(shape_b)} do not fit the layer of {show(base.model_id)}, "
            f"which takes {into} and gives {out}"
        )
    return shape_a[0]


def _load(names: Mapping[str, str], scaling: float, reader: TensorReader) -> LinearChange:
    lora_a, lora_b = reader.load(names[A]), reader.load(names[B], scaling)
    return LinearChange(
        lora=LoraModule(lora_a, lora_b, scaling),
        magnitude=reader.load(names[MAGNITUDE]) if MAGNITUDE in names else None,
        bias=reader.load(names[BIAS], scaling) * scaling if BIAS in names else None,
    )
