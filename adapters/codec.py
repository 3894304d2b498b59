"""PEFT folders from strangers, read and checked whole: files, config, header, names, shapes, sizes, values.

The order of trust: the tensors in the file, then the config, then ``medley.json``; where they disagree the adapter is
refused. Knows no torch, no server and no registry; imports nothing beyond numpy, so that the engine can use it on a
bare GPU box. Functions may be called from any thread; they read files, so never from an event loop.

Shapes: R rank, P virtual tokens, D width of the base.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/save_and_load.py (names of the tensors).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapters.adapter_folder import (
    ALLOWED_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    FileLimits,
    adapter_files,
    check_file_name,
    check_sizes,
)
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import MANIFEST_FILE, AdapterKind, AdapterManifest, BaseModelSpec
from adapters.peft_config import LoraConfig, PromptConfig, parse_config
from adapters.safetensors_file import (
    FLOAT_DTYPES,
    Float32Array,
    HeaderLimits,
    TensorEntry,
    open_regular,
    read_header,
    read_tensor,
)
from adapters.strict_json import parse_object, show

__all__ = [
    "ALLOWED_FILES",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterWeights",
    "CodecLimits",
    "LoraModule",
    "LoraWeights",
    "SoftPromptWeights",
    "adapter_files",
    "check_file_name",
    "inspect_adapter",
    "read_adapter",
]

_PROMPT_KEY = "prompt_embeddings"
_MODEL_PREFIX = "base_model.model."
_LORA_KEY = re.compile(
    r"base_model\.model\.(?P<path>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])(?:\.(?P<name>[A-Za-z0-9_-]+))?\.weight"
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
class CodecLimits:
    """Limits an adapter must keep.

    Attributes:
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.
        max_header_bytes: Longest safetensors header.
        max_tensors: Most tensors.
        max_rank: Largest LoRA rank.
        max_virtual_tokens: Longest soft prompt.
    """

    max_file_bytes: int = 512 << 20
    max_text_bytes: int = 256 << 10
    max_header_bytes: int = 2 << 20
    max_tensors: int = 8192
    max_rank: int = 64
    max_virtual_tokens: int = 128


@dataclass(frozen=True, eq=False)
class LoraModule:
    """One LoRA pair: y = Wx + scaling · B(Ax).

    Attributes:
        lora_a: A, (R, in), float32.
        lora_b: B, (out, R), float32; not multiplied by the scaling.
        scaling: s.
    """

    lora_a: Float32Array
    lora_b: Float32Array
    scaling: float


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA.

    Attributes:
        modules: Module path in the base, ``encoder.block.0.layer.0.SelfAttention.q`` for instance → its pair.
    """

    modules: Mapping[str, LoraModule]

    @property
    def max_rank(self) -> int:
        """The largest rank of its modules."""
        return max(len(module.lora_a) for module in self.modules.values())


@dataclass(frozen=True, eq=False)
class SoftPromptWeights:
    """A soft prompt.

    Attributes:
        embeddings: (P, D), float32, in front of the encoder's input embeddings.
    """

    embeddings: Float32Array


AdapterWeights = LoraWeights | SoftPromptWeights


@dataclass(frozen=True)
class _Pair:
    """Where one LoRA pair lies in the file, checked but for its values."""

    names: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    scaling: float

    @property
    def rank(self) -> int:
        return self.entries["A"].shape[0]


@dataclass(frozen=True)
class _Folder:
    """What the small files of an adapter say, checked by themselves and against the base."""

    weights_file: Path
    config: LoraConfig | PromptConfig
    manifest: AdapterManifest | None


def read_adapter(folder: Path, base: BaseModelSpec, limits: CodecLimits) -> AdapterWeights:
    """Return the weights of the adapter in ``folder``, after checking everything about it.

    Raises:
        InvalidAdapterError: If the files break the format; the message says where and what to do.
        UnsupportedAdapterError: If it is of a family that is not served per request.
        WrongBaseError: If it was made for another base.
        AdapterTooLargeError: If it is over a limit.
        OSError: If the files cannot be read.
    """
    parts = _read_folder(folder, base, limits)
    with open_regular(parts.weights_file) as file:
        entries = _read_entries(file, limits)
        if isinstance(parts.config, PromptConfig):
            return SoftPromptWeights(_load_prompt(file, entries, parts.config, base, limits))
        return LoraWeights(dict(_load_pairs(file, _plan_lora(entries, parts.config, base, limits))))


def inspect_adapter(folder: Path, base: BaseModelSpec, limits: CodecLimits, name: str) -> AdapterManifest:
    """Check everything about the adapter in ``folder`` and return its manifest under the name ``name``.

    Checks what :func:`read_adapter` checks, holding one tensor at a time. The manifest is that of ``medley.json``, else
    made from config and tensors. Its prompt template is not checked here but by ``adapters.prompting.check_template``.

    Raises:
        InvalidAdapterError: As :func:`read_adapter`, and if ``medley.json`` says otherwise than the tensors.
        AdapterTooLargeError: If it is over a limit.
        OSError: If the files cannot be read.
    """
    parts = _read_folder(folder, base, limits)
    with open_regular(parts.weights_file) as file:
        entries = _read_entries(file, limits)
        if isinstance(parts.config, PromptConfig):
            num_tokens = _load_prompt(file, entries, parts.config, base, limits).shape[0]
            found = AdapterManifest(name, AdapterKind.PROMPT, num_virtual_tokens=num_tokens)
        else:
            pairs = _plan_lora(entries, parts.config, base, limits)
            for _ in _load_pairs(file, pairs):
                pass
            targets = tuple(sorted({path.rpartition(".")[2] for path in pairs}))
            rank = max(pair.rank for pair in pairs.values())
            found = AdapterManifest(name, AdapterKind.LORA, rank=rank, target_modules=targets)
    return _merge(found, parts)


def _read_folder(folder: Path, base: BaseModelSpec, limits: CodecLimits) -> _Folder:
    files = adapter_files(folder)
    check_sizes(files, FileLimits(limits.max_file_bytes, limits.max_text_bytes))
    texts = {name: _read_text(path) for name, path in files.items() if name != WEIGHTS_FILE}
    manifest = None
    if MANIFEST_FILE in texts:
        manifest = AdapterManifest.from_json(texts[MANIFEST_FILE].decode())
        _check_base(manifest, base)
    config = parse_config(parse_object(texts[CONFIG_FILE], CONFIG_FILE))
    return _Folder(files[WEIGHTS_FILE], config, manifest)


def _read_text(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidAdapterError(f"{path.name} is not text in UTF-8") from error
    return data


def _check_base(manifest: AdapterManifest, base: BaseModelSpec) -> None:
    made_for = f"the adapter was made for {show(manifest.base_model)}; this server serves {show(base.model_id)}"
    if manifest.base_fingerprint and manifest.base_fingerprint != base.fingerprint:
        raise WrongBaseError(f"{made_for}, whose shapes differ")
    if manifest.base_weights_digest and base.weights_digest and manifest.base_weights_digest != base.weights_digest:
        raise WrongBaseError(f"{made_for}, whose weights differ")


def _merge(found: AdapterManifest, parts: _Folder) -> AdapterManifest:
    declared = parts.manifest
    if declared is None:
        return replace(found, base_model=parts.config.base_model)
    for key in ("kind", "rank", "num_virtual_tokens"):
        stated, actual = getattr(declared, key), getattr(found, key)
        if stated and stated != actual:
            raise InvalidAdapterError(f"{MANIFEST_FILE} says {key} {stated}, but the tensors say {actual}")
    return replace(
        declared,
        name=found.name,
        base_model=declared.base_model or parts.config.base_model,
        rank=found.rank,
        target_modules=found.target_modules,
        num_virtual_tokens=found.num_virtual_tokens,
    )


def _read_entries(file: BinaryIO, limits: CodecLimits) -> dict[str, TensorEntry]:
    entries = read_header(file, HeaderLimits(limits.max_header_bytes, limits.max_tensors))
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


def _plan_lora(
    entries: Mapping[str, TensorEntry], config: LoraConfig, base: BaseModelSpec, limits: CodecLimits
) -> dict[str, _Pair]:
    sides = _lora_sides(entries)
    pairs = {}
    for path, names in sides.items():
        if len(names) != 2:
            missing = "A" if "B" in names else "B"
            raise InvalidAdapterError(f"{path} has no lora_{missing}; both halves of a pair are needed")
        rank = config.rank_of(path)
        pair = _Pair(names, {side: entries[name] for side, name in names.items()}, config.scaling_of(path, rank))
        _check_pair(path, pair, rank, base, limits)
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


def _check_pair(path: str, pair: _Pair, stated_rank: int, base: BaseModelSpec, limits: CodecLimits) -> None:
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
    if pair.rank > limits.max_rank:
        raise AdapterTooLargeError(f"{path} has rank {pair.rank}; at most {limits.max_rank} is served")


def _load_pairs(file: BinaryIO, pairs: Mapping[str, _Pair]) -> Iterator[tuple[str, LoraModule]]:
    for path, pair in pairs.items():
        lora_a = _load_finite(file, pair.names["A"], pair.entries["A"])
        lora_b = _load_finite(file, pair.names["B"], pair.entries["B"], pair.scaling)
        yield path, LoraModule(lora_a, lora_b, pair.scaling)


def _load_prompt(
    file: BinaryIO, entries: Mapping[str, TensorEntry], config: PromptConfig, base: BaseModelSpec, limits: CodecLimits
) -> Float32Array:
    if set(entries) != {_PROMPT_KEY}:
        raise InvalidAdapterError(f"{CONFIG_FILE} says PROMPT_TUNING, but there are other tensors than {_PROMPT_KEY}")
    num_rows, width = entries[_PROMPT_KEY].shape
    num_tokens = config.num_virtual_tokens
    if width != base.d_model:
        raise WrongBaseError(f"the soft prompt is {width} wide; {show(base.model_id)} needs {base.d_model}")
    # An encoder-decoder's prompt is stored once for the encoder and once for the decoder; only the first is used.
    if num_rows not in (num_tokens, 2 * num_tokens):
        raise InvalidAdapterError(f"the soft prompt has {num_rows} rows, but {CONFIG_FILE} says {num_tokens} tokens")
    if num_tokens > limits.max_virtual_tokens:
        raise AdapterTooLargeError(
            f"the soft prompt has {num_tokens} tokens; at most {limits.max_virtual_tokens} are served"
        )
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
