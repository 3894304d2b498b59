"""What a base model's folder demands of its adapters, read from its files without loading the model.

The one implementation of the base's shapes, fingerprint and weights digest: training, service and engine all call it,
so they agree. Knows Hugging Face folders (``config.json`` and safetensors, sharded or not) of T5 and of decoder-only
models (``…ForCausalLM``: Llama, Mistral, Qwen and their like), also quantized by AWQ or GPTQ, and no adapters. May be
called from any thread; reading the weights for their digest takes about a second per gigabyte.

Source:
    How AWQ and GPTQ store a layer: vLLM 0.32.0, ``auto_awq.py`` and ``auto_gptq.py`` in
    https://github.com/vllm-project/vllm/tree/v0.32.0/vllm/model_executor/layers/quantization.
"""

import re
from pathlib import Path

from adapters.digest import digest_bytes_of, digest_files
from adapters.errors import InvalidAdapterError, InvalidBaseError
from adapters.manifest import MANIFEST_FILE, BaseModelSpec, is_encoder_decoder
from adapters.safetensors_file import HeaderLimits, TensorEntry, open_regular, read_header
from adapters.strict_json import parse_object, show

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.safetensors")
_LIMITS = HeaderLimits(max_header_bytes=16 << 20, max_tensors=65_536)
_WEIGHT_SUFFIX = ".weight"
# Two-dimensional weights that are tables or the output head, not layers an adapter may target.
_NOT_LINEAR = {
    *("shared", "embed_tokens", "relative_attention_bias", "lm_head"),
    *("embed_positions", "word_embeddings", "wte", "wpe", "embed_in", "embed_out"),
}


def read_base_spec(folder: Path, model_id: str | None = None) -> BaseModelSpec:
    """Return what the base in ``folder`` demands.

    Args:
        folder: A model folder, or the snapshot folder of a hub model.
        model_id: Name callers use; by default that of ``medley.json``, else the folder's name.

    Raises:
        InvalidBaseError: If a file is missing or malformed.
    """
    try:
        return _read(folder, model_id)
    except InvalidAdapterError as error:
        raise InvalidBaseError(f"the base model in {folder} cannot be read: {error.message}") from error
    except OSError as error:
        raise InvalidBaseError(f"the base model in {folder} cannot be read: {error}") from error


def _read(folder: Path, model_id: str | None) -> BaseModelSpec:
    config = parse_object((folder / _CONFIG_FILE).read_bytes(), _CONFIG_FILE)
    files = _weights_files(folder)
    entries: dict[str, TensorEntry] = {}
    for path in files.values():
        # Hub snapshots are links into the hub's cache; the folder is the operator's own.
        with open_regular(path.resolve()) as file:
            entries |= read_header(file, _LIMITS)
    architecture = _architecture(config)
    has_encoder = is_encoder_decoder(architecture)
    d_model = _size(config, "d_model" if has_encoder else "hidden_size")
    return BaseModelSpec(
        model_id=model_id or _own_model_id(folder),
        architecture=architecture,
        d_model=d_model,
        vocab_size=_size(config, "vocab_size"),
        linear_shapes=_linear_shapes(entries, config),
        weights_digest=digest_bytes_of(files[_WEIGHTS_FILE]) if _WEIGHTS_FILE in files else digest_files(files),
        norm_paths=_norm_paths(entries, d_model),
        **_prefix_sizes(config) if has_encoder else {},
    )


def _weights_files(folder: Path) -> dict[str, Path]:
    if (folder / _WEIGHTS_FILE).exists() or not (folder / _INDEX_FILE).exists():
        return {_WEIGHTS_FILE: folder / _WEIGHTS_FILE}
    weight_map = parse_object((folder / _INDEX_FILE).read_bytes(), _INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidAdapterError(f"{_INDEX_FILE} needs a weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not _SHARD.fullmatch(name):
            raise InvalidAdapterError(f"{_INDEX_FILE} names the file {show(name)}, which is no shard beside it")
    return {name: folder / name for name in names}


def _linear_shapes(entries: dict[str, TensorEntry], config: dict[str, object]) -> dict[str, tuple[int, int]]:
    shapes = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        if len(entry.shape) != 2 or module.rpartition(".")[2] in _NOT_LINEAR:
            continue
        first, second = entry.shape
        if leaf == "weight":
            shapes[module] = (first, second)
        elif leaf == "qweight":
            shapes[module] = _unpacked(first, second, config)
    return shapes


def _unpacked(first: int, second: int, config: dict[str, object]) -> tuple[int, int]:
    """Return (out, in) of a layer whose transposed weight is stored several to an int32: along out (AWQ), in (GPTQ)."""
    how = config.get("quantization_config")
    if not isinstance(how, dict) or how.get("quant_method") not in {"awq", "gptq"}:
        raise InvalidAdapterError(f"{_CONFIG_FILE} must say how the base is quantized: awq or gptq")
    bits = _size(how, "bits")
    return (second * 32 // bits, first) if how["quant_method"] == "awq" else (second, first * 32 // bits)


def _norm_paths(entries: dict[str, TensorEntry], d_model: int) -> frozenset[str]:
    return frozenset(
        name.removesuffix(_WEIGHT_SUFFIX)
        for name, entry in entries.items()
        if name.endswith(_WEIGHT_SUFFIX) and entry.shape == (d_model,)
    )


def _prefix_sizes(config: dict[str, object]) -> dict[str, int]:
    return {
        # Where a T5 config leaves it out, the decoder is as deep as the encoder.
        "num_decoder_layers": _size(config, "num_decoder_layers" if config.get("num_decoder_layers") else "num_layers"),
        "num_heads": _size(config, "num_heads"),
        "d_kv": _size(config, "d_kv"),
    }


def _architecture(config: dict[str, object]) -> str:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise InvalidAdapterError(f"{_CONFIG_FILE} must name one architecture")
    return architectures[0]


def _size(config: dict[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidAdapterError(f"{_CONFIG_FILE} needs {key}, a whole number of 1 or more")
    return value


def _own_model_id(folder: Path) -> str:
    card = folder / MANIFEST_FILE
    model_id = parse_object(card.read_bytes(), MANIFEST_FILE).get("model_id") if card.exists() else folder.name
    if not isinstance(model_id, str) or not model_id:
        raise InvalidAdapterError(f"{MANIFEST_FILE} needs model_id as text")
    return model_id
