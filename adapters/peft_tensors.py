"""The tensors of an adapter: their names, shapes and values checked against config and base, then loaded.

First everything that names and shapes can tell is checked without reading a value; then tensors are loaded one by one.
Knows no folders. Functions may be called from any thread; they read an open file.

Shapes: R rank, P virtual tokens, D width of the base.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/save_and_load.py (names of the tensors).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import Float32Array, LoraModule
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import BaseModelSpec
from adapters.peft_config import LoraConfig, PromptConfig
from adapters.safetensors_file import FLOAT_DTYPES, HeaderLimits, TensorEntry, read_header, read_tensor
from adapters.strict_json import show

_PROMPT_KEY = "prompt_embeddings"
_MODEL_PREFIX = "base_model.model."
_LORA_KEY = re.compile(
    r"base_model\.model\.(?P<path>[A-Za-z0-9_.]{1,256})\.lora_(?P<side>[AB])(?:\.(?P<name>[A-Za-z0-9_-]{1,64}))?\.weight"
)
_FAMILY_OF_KEY_PART = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA on embeddings",
    "lora_B.bias": "lora_bias",
    "lora_E": "AdaLoRA",
    "ranknum": "AdaLoRA",
    "ia3_l": "IA3",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "vera_": "VeRA",
    "oft_": "OFT",
    "prefix_task_": "multitask prompt tuning",
    "trainable_tokens": "trainable tokens",
}
# Largest float16, the narrowest range a base is served in; bfloat16 and float32 reach further.
_MAX_ABS_VALUE = 65504.0


@dataclass(frozen=True)
class LoraPair:
    """Where one LoRA pair lies in the file, checked but for its values.

    Attributes:
        names: ``A`` and ``B`` → name in the file.
        entries: ``A`` and ``B`` → place in the file.
        scaling: s.
    """

    names: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    scaling: float

    @property
    def rank(self) -> int:
        """R, as the tensors say."""
        return self.entries["A"].shape[0]


def read_entries(file: BinaryIO, limits: HeaderLimits) -> dict[str, TensorEntry]:
    """Return where every tensor of an adapter lies; all are floating-point, of two dimensions and of a known name.

    Raises:
        InvalidAdapterError: If the file or a tensor breaks the format.
        UnsupportedAdapterError: If a tensor belongs to a family that is not served.
        AdapterTooLargeError: If the header is over its limits.
    """
    entries = read_header(file, limits)
    if not entries:
        raise InvalidAdapterError("the weights file holds no tensors")
    for name, entry in entries.items():
        _check_family(name)
        if entry.dtype not in FLOAT_DTYPES:
            raise InvalidAdapterError(f"{show(name)} has dtype {entry.dtype}; use one of {', '.join(FLOAT_DTYPES)}")
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise InvalidAdapterError(f"{show(name)} has shape {list(entry.shape)}; two dimensions above 0 are needed")
    return entries


def _check_family(name: str) -> None:
    if name == _PROMPT_KEY or _LORA_KEY.fullmatch(name):
        return
    for part, family in _FAMILY_OF_KEY_PART.items():
        if part in name:
            raise UnsupportedAdapterError(f"{family} is not supported (tensor {show(name)}); use LoRA or prompt tuning")
    if name.startswith(_MODEL_PREFIX):
        raise UnsupportedAdapterError(
            f"{show(name)} is a full tensor of the base; train without modules_to_save and without biases"
        )
    raise InvalidAdapterError(f"unknown tensor {show(name)}")


def plan_lora(
    entries: Mapping[str, TensorEntry], config: LoraConfig, base: BaseModelSpec, max_rank: int
) -> dict[str, LoraPair]:
    """Return module path → pair, complete and of the right shapes; no value has been read yet.

    Raises:
        InvalidAdapterError: If half of a pair is missing, or ranks contradict each other or the config.
        WrongBaseError: If the base has no such layer, or one of another shape.
        AdapterTooLargeError: If a rank is over ``max_rank``.
    """
    sides = _lora_sides(entries)
    pairs = {}
    for path, names in sides.items():
        if len(names) != 2:
            missing = "A" if "B" in names else "B"
            raise InvalidAdapterError(f"{path} has no lora_{missing}; both halves of a pair are needed")
        rank = config.rank_of(path)
        pair = LoraPair(names, {side: entries[name] for side, name in names.items()}, config.scaling_of(path, rank))
        _check_pair(path, pair, rank, base)
        if rank > max_rank:
            raise AdapterTooLargeError(f"{path} has rank {rank}; at most {max_rank} is served")
        pairs[path] = pair
    return pairs


def _lora_sides(entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, str]]:
    sides: dict[str, dict[str, str]] = {}
    adapter_names = set()
    for name in entries:
        match = _LORA_KEY.fullmatch(name)
        if match is None:
            raise InvalidAdapterError(f"{CONFIG_FILE} says LORA, but {show(name)} is a soft prompt")
        adapter_names.add(match["name"])
        sides.setdefault(match["path"], {})[match["side"]] = name
    if len(adapter_names) > 1:
        raise InvalidAdapterError("the weights file holds more than one adapter; save them one by one")
    return sides


def _check_pair(path: str, pair: LoraPair, stated_rank: int, base: BaseModelSpec) -> None:
    shape_a, shape_b = pair.entries["A"].shape, pair.entries["B"].shape
    if shape_a[0] != shape_b[1]:
        raise InvalidAdapterError(f"{path}: lora_A {list(shape_a)} and lora_B {list(shape_b)} differ in rank")
    if path not in base.linear_shapes:
        raise WrongBaseError(f"{show(base.model_id)} has no linear layer {show(path)} for an adapter")
    if (shape_b[0], shape_a[1]) != base.linear_shapes[path]:
        out, into = base.linear_shapes[path]
        raise WrongBaseError(
            f"{path}: lora_A {list(shape_a)} and lora_B {list(shape_b)} do not fit the layer of {show(base.model_id)}, "
            f"which takes {into} and gives {out}"
        )
    if pair.rank != stated_rank:
        raise InvalidAdapterError(f"{path} has rank {pair.rank}, but {CONFIG_FILE} says {stated_rank}")


def load_pairs(file: BinaryIO, pairs: Mapping[str, LoraPair]) -> Iterator[tuple[str, LoraModule]]:
    """Load planned pairs one by one.

    Raises:
        InvalidAdapterError: If a value is not finite, or would not be in a narrower dtype or once scaled.
    """
    for path, pair in pairs.items():
        lora_a = _load_finite(file, pair.names["A"], pair.entries["A"])
        lora_b = _load_finite(file, pair.names["B"], pair.entries["B"], pair.scaling)
        yield path, LoraModule(lora_a, lora_b, pair.scaling)


def load_prompt(
    file: BinaryIO,
    entries: Mapping[str, TensorEntry],
    config: PromptConfig,
    base: BaseModelSpec,
    max_virtual_tokens: int,
) -> Float32Array:
    """Return the rows of a soft prompt that are used, (P, D).

    Raises:
        InvalidAdapterError: If there are other tensors, the rows contradict the config, or a value is not finite.
        WrongBaseError: If it is not as wide as the base.
        AdapterTooLargeError: If it is longer than ``max_virtual_tokens``.
    """
    if set(entries) != {_PROMPT_KEY}:
        raise InvalidAdapterError(f"{CONFIG_FILE} says PROMPT_TUNING, but there are other tensors than {_PROMPT_KEY}")
    num_rows, width = entries[_PROMPT_KEY].shape
    num_tokens = config.num_virtual_tokens
    if width != base.d_model:
        raise WrongBaseError(f"the soft prompt is {width} wide; {show(base.model_id)} needs {base.d_model}")
    # An encoder-decoder's prompt is stored once for the encoder and once for the decoder; only the first is used.
    if num_rows not in (num_tokens, 2 * num_tokens):
        raise InvalidAdapterError(f"the soft prompt has {num_rows} rows, but {CONFIG_FILE} says {num_tokens} tokens")
    if num_tokens > max_virtual_tokens:
        raise AdapterTooLargeError(f"the soft prompt has {num_tokens} tokens; at most {max_virtual_tokens} are served")
    return _load_finite(file, _PROMPT_KEY, entries[_PROMPT_KEY])[:num_tokens].copy()


def _load_finite(file: BinaryIO, name: str, entry: TensorEntry, scaling: float = 1.0) -> Float32Array:
    array = read_tensor(file, name, entry)
    with np.errstate(invalid="ignore"):
        largest = max(float(array.max()), -float(array.min()))
    # A comparison with NaN is false.
    if not largest * max(abs(scaling), 1.0) <= _MAX_ABS_VALUE:
        raise InvalidAdapterError(
            f"{show(name)} holds NaN, infinity or values too large to serve (over {_MAX_ABS_VALUE:.0f} in size)"
        )
    return array
