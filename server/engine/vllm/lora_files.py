"""Which LoRAs vLLM can serve: plain ones as PEFT saves them, rsLoRA and rank or alpha patterns included.

Medley reads more than that: it folds other families into a LoRA, and takes files that PEFT itself would not write so.
vLLM reads the files by itself. What it cannot compute is refused here by name, before it is handed a file.

Knows no vLLM. Reads files, so never on an event loop's thread.

Source:
    vLLM 0.32.0: ``vllm/lora/peft_helper.py``, ``vllm/lora/lora_model.py``, ``vllm/lora/utils.py``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from adapters.codec import CONFIG_FILE, WEIGHTS_FILE, CodecLimits, inspect_adapter
from adapters.errors import AdapterTooLargeError, UnsupportedAdapterError
from adapters.manifest import BaseModelSpec
from adapters.peft_tensors import read_entries
from adapters.safetensors_file import open_regular
from adapters.strict_json import parse_object, show

_FEATURES = {"use_dora": "DoRA (use_dora)", "lora_bias": "a LoRA with a bias (lora_bias)"}
_TENSORS = (".lora_A.weight", ".lora_B.weight")


def check_lora(folder: Path, base: BaseModelSpec, max_lora_rank: int) -> None:
    """Check everything about a LoRA's files, and that vLLM can serve it.

    Args:
        folder: Its PEFT files.
        base: What it must fit.
        max_lora_rank: Largest rank accepted.

    Raises:
        UnsupportedAdapterError: If vLLM cannot compute it.
        InvalidAdapterError: If the files break the format, or hold a value that is not finite.
        WrongBaseError: If it was made for another base.
        AdapterTooLargeError: If a rank is over the limit.
        OSError: If the files cannot be read.
    """
    limits = CodecLimits(max_rank=max_lora_rank)
    inspect_adapter(folder, base, limits, name=folder.name)
    config = parse_object((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    _check_config(config)
    _check_ranks(config, max_lora_rank)
    with open_regular(folder / WEIGHTS_FILE) as file:
        _check_names(read_entries(file, limits.header))


def _check_config(config: Mapping[str, object]) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise UnsupportedAdapterError(
            f"the vllm engine serves no adapters of type {show(peft_type)}; convert it to a LoRA in PEFT"
        )
    for switch, feature in _FEATURES.items():
        if config.get(switch):
            raise UnsupportedAdapterError(f"the vllm engine cannot compute {feature}; train the adapter without it")
    bias = config.get("bias", "none")
    if bias != "none":
        raise UnsupportedAdapterError(f"the vllm engine serves no LoRA with bias {show(bias)}; train it with none")
    if "target_modules" not in config:
        raise UnsupportedAdapterError(f"the vllm engine needs target_modules in {CONFIG_FILE}")


def _check_ranks(config: Mapping[str, object], max_lora_rank: int) -> None:
    # vLLM judges by the config, whether a layer has that rank or not.
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    largest = max(rank for rank in ranks if isinstance(rank, int))
    if largest > max_lora_rank:
        raise AdapterTooLargeError(f"{CONFIG_FILE} has rank {largest}; at most {max_lora_rank} is served")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.endswith(_TENSORS):
            raise UnsupportedAdapterError(
                f"the vllm engine does not read the tensor {show(name)}; save the adapter with PEFT's save_pretrained"
            )
