"""The tensors of an adapter: their names, shapes and values, each checked before it is used.

First everything that names and shapes can tell is checked without reading a value; then tensors are loaded one by one.
Which parts make a layer's change is the business of ``adapters.peft_families``. Functions may be called from any
thread; a reader belongs to the thread that has its file.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/save_and_load.py (names of the tensors).
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import BinaryIO

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import Float32Array
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import BaseModelSpec
from adapters.safetensors_file import FLOAT_DTYPES, HeaderLimits, TensorEntry, read_header, read_tensor
from adapters.strict_json import show

_MODEL_PREFIX = "base_model.model."
_PARTS = "|".join(
    (
        *("lora_A", "lora_B", "lora_E", "lora_magnitude_vector", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        *("vera_lambda_b", "vera_lambda_d", "ia3_l", "ln_tuning_layers"),
    )
)
# "weight" and "bias" end a name; anything else after the part is what the adapter was called in training.
_LAYER_KEY = re.compile(
    rf"base_model\.model\.(?P<path>[A-Za-z0-9_.]{{1,256}})\.(?P<part>{_PARTS})"
    r"(?:\.(?!(?:weight|bias)$)(?P<name>[A-Za-z0-9_-]{1,64}))?(?P<leaf>\.weight|\.bias)?"
)
_SHARED_KEYS = {"prompt_embeddings", "prefix_task_cols", "prefix_task_rows", "base_model.vera_A", "base_model.vera_B"}
_UNSERVED_KEY_PARTS = {
    "lora_embedding_": "LoRA on embeddings",
    "hada_t": "LoHa on convolutions",
    "lokr_": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
    "fourierft_": "FourierFT",
    "vblora_": "VB-LoRA",
    "xlora": "X-LoRA",
    "poly_": "Poly",
    "trainable_tokens": "trainable tokens",
}
# Largest float16, the narrowest range a base is served in; bfloat16 and float32 reach further.
_MAX_ABS_VALUE = 65504.0


def read_entries(file: BinaryIO, limits: HeaderLimits) -> dict[str, TensorEntry]:
    """Return where every tensor of an adapter lies; all are floating-point and of a name some served family uses.

    Raises:
        InvalidAdapterError: If the file or a tensor breaks the format.
        UnsupportedAdapterError: If a tensor belongs to a family that is not served.
        AdapterTooLargeError: If the header is over its limits.
    """
    entries = read_header(file, limits)
    if not entries:
        raise InvalidAdapterError("the weights file holds no tensors")
    for name, entry in entries.items():
        _check_name(name)
        if entry.dtype not in FLOAT_DTYPES:
            raise InvalidAdapterError(f"{show(name)} has dtype {entry.dtype}; use one of {', '.join(FLOAT_DTYPES)}")
    return entries


def _check_name(name: str) -> None:
    if name in _SHARED_KEYS or _LAYER_KEY.fullmatch(name):
        return
    for part, family in _UNSERVED_KEY_PARTS.items():
        if part in name:
            raise UnsupportedAdapterError(f"{family} is not supported (tensor {show(name)}); train without it")
    if name.startswith(_MODEL_PREFIX):
        raise UnsupportedAdapterError(
            f"{show(name)} is a full tensor of the base; train without modules_to_save and without biases"
        )
    raise InvalidAdapterError(f"unknown tensor {show(name)}")


def layers_of(
    entries: Mapping[str, TensorEntry], peft_type: str, parts: Set[str], shared: Set[str] = frozenset()
) -> dict[str, dict[str, str]]:
    """Return module path → part → name of its tensor; every layer has every part.

    Args:
        entries: All tensors of the file.
        peft_type: What the config says the adapter is, for messages.
        parts: What each layer must have, as PEFT names it behind the path: ``lora_A.weight``, ``ia3_l``.
        shared: Names of tensors that belong to no layer and are left to the caller.

    Raises:
        InvalidAdapterError: If a part is missing, a tensor does not belong, or the file holds more than one adapter.
    """
    layers: dict[str, dict[str, str]] = {}
    adapter_names = set()
    for name in (name for name in entries if name not in shared):
        match = _LAYER_KEY.fullmatch(name)
        part = _part(match) if match else ""
        if match is None or part not in parts:
            raise InvalidAdapterError(f"{CONFIG_FILE} says {peft_type}, to which {show(name)} does not belong")
        adapter_names.add(match["name"])
        layers.setdefault(match["path"], {})[part] = name
    if len(adapter_names) > 1:
        raise InvalidAdapterError("the weights file holds more than one adapter; save them one by one")
    for path, found in layers.items():
        if missing := parts - found.keys():
            part = min(missing)
            raise InvalidAdapterError(f"{path} has no {part}, which {peft_type} needs; save the adapter again")
    return layers


def _part(match: re.Match[str]) -> str:
    # PEFT saves this one without the end that it has in the model.
    leaf = "" if match["part"] == "lora_magnitude_vector" else match["leaf"] or ""
    return match["part"] + leaf


def matrix_shape(entries: Mapping[str, TensorEntry], name: str) -> tuple[int, int]:
    """Return the shape of a tensor that must be a matrix.

    Raises:
        InvalidAdapterError: If it is none, or has no rows or columns.
    """
    shape = entries[name].shape
    if len(shape) != 2 or 0 in shape:
        raise InvalidAdapterError(f"{show(name)} has shape {list(shape)}; two dimensions above 0 are needed")
    return shape[0], shape[1]


def linear_shape(base: BaseModelSpec, path: str) -> tuple[int, int]:
    """Return (out, in) of a linear layer of the base.

    Raises:
        WrongBaseError: If it has none of that path.
    """
    if path not in base.linear_shapes:
        raise WrongBaseError(f"{show(base.model_id)} has no linear layer {show(path)} for an adapter")
    return base.linear_shapes[path]


def check_fits(entries: Mapping[str, TensorEntry], name: str, shape: tuple[int, ...], base: BaseModelSpec) -> None:
    """Accept a tensor of the shape that the base asks for.

    Raises:
        WrongBaseError: If its shape is another.
    """
    found = entries[name].shape
    if found != shape:
        raise WrongBaseError(
            f"{show(name)} has shape {list(found)}, which does not fit {show(base.model_id)}: {list(shape)} is needed"
        )


@dataclass(frozen=True)
class TensorReader:
    """Loads tensors of one open file, each as float32 and with finite values only.

    Attributes:
        file: The weights file, open for as long as the reader is used.
        entries: Its tensors.
    """

    file: BinaryIO
    entries: Mapping[str, TensorEntry]

    def load(self, name: str, factor: float = 1.0) -> Float32Array:
        """Return a tensor whose values, also times ``factor``, can be served in every dtype.

        Raises:
            InvalidAdapterError: If a value is not finite, or would not be in a narrower dtype or times ``factor``.
        """
        return servable(read_tensor(self.file, name, self.entries[name]), name, factor)


def servable(array: Float32Array, name: str, factor: float = 1.0) -> Float32Array:
    """Return values, read from ``name`` or made from it, that can be served in every dtype, also times ``factor``.

    Raises:
        InvalidAdapterError: If one is not finite, or would not be in a narrower dtype or times ``factor``.
    """
    largest = max(float(array.max()), -float(array.min()))
    # A comparison with NaN is false. The factor alone counts too: where it is infinite, zeros become NaN.
    if not (abs(factor) <= _MAX_ABS_VALUE and largest * max(abs(factor), 1.0) <= _MAX_ABS_VALUE):
        raise InvalidAdapterError(
            f"{show(name)} holds NaN, infinity or values too large to serve (over {_MAX_ABS_VALUE:.0f} in size)"
        )
    return array
