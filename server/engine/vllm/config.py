"""What the vLLM engine is told at start, and how that is said to vLLM.

Nearly all that vLLM can be told goes through as it is, checked against vLLM's own list of arguments; what Medley sets
itself is refused there with the name of our setting. Can be imported without vLLM; knows no settings, and reads no
environment.

Source:
    vLLM 0.32.0: ``vllm/engine/arg_utils.py``, ``vllm/config/lora.py``, ``vllm/envs.py``.
"""

import difflib
import enum
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from adapters.manifest import BaseModelSpec
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.core.sampling import MAX_LOGPROBS
from server.engine.vllm import plugin

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.config import VllmConfig

DTYPES = ("float32", "bfloat16", "float16", "auto")
# vLLM's kernels are made for these ranks only.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Our words for what vLLM does to a checkpoint while it loads it; bitsandbytes is not among it since 0.32. What a
# checkpoint is stored as (AWQ, GPTQ, fp8), vLLM sees by itself.
QUANTIZATIONS: Mapping[str, str | None] = MappingProxyType({"none": None, "int8": "int8_per_channel_weight_only"})

_LOG = "the log settings"
_SET_BY_MEDLEY: Mapping[str, str] = MappingProxyType(
    {
        "model": "engine.model",
        "served_model_name": "engine.model",
        "tokenizer": "engine.model",
        "revision": "engine.model",
        "tokenizer_revision": "engine.model",
        "dtype": "engine.dtype",
        "max_model_len": "engine.max_model_len",
        "max_num_seqs": "engine.max_num_seqs",
        "max_num_queued_reqs": "engine.max_num_waiting",
        "enable_lora": "engine.max_loras",
        "max_loras": "engine.max_loras",
        "max_lora_rank": "engine.max_lora_rank",
        "lora_target_modules": "nothing: all layers that LoRAs may change are open to them",
        "default_mm_loras": "engine.max_loras",
        "enable_prompt_embeds": "engine.max_soft_prompts",
        "max_logprobs": "num_logprobs of each request",
        "logprobs_mode": "num_logprobs of each request",
        "runner": "nothing: it generates",
        "skip_tokenizer_init": "nothing: structured output needs the tokenizer",
        "disable_log_stats": _LOG,
        "enable_log_requests": _LOG,
        "logging_config": _LOG,
        "log_level": _LOG,
        "log_config_file": _LOG,
    }
)


@dataclass(frozen=True, slots=True)
class VllmEngineConfig:
    """Model, place and limits of a vLLM engine.

    Attributes:
        model: Folder with the model's files, or a hub id.
        device: ``cpu``, ``cuda`` or ``auto``; it must be what the installed vLLM was built for.
        dtype: Serving dtype, one of :data:`DTYPES`; ``auto`` is the checkpoint's.
        quantization: What is done to the base's linear layers at loading: a key of :data:`QUANTIZATIONS`.
        max_num_seqs: Most requests in one batch; 0 is vLLM's own choice.
        max_num_waiting: Most requests in the queue.
        max_model_len: Most positions of a request, prompt, virtual tokens and answer; 0 is the model's context.
        max_new_tokens: Most generated tokens of a request; 0 is whatever fits.
        max_loras: LoRAs in one batch.
        max_lora_rank: Largest LoRA rank accepted.
        max_soft_prompts: Soft prompts resident at once.
        max_virtual_tokens: Longest soft prompt accepted.
        num_threads: CPU threads of a forward pass; 0 leaves vLLM's own choice.
        arguments: Further engine arguments by vLLM's names, values as JSON has them.

    Raises:
        InvalidArgumentError: If a value is out of range; ``param`` names the field.
    """

    model: str
    device: str = "auto"
    dtype: str = "float32"
    quantization: str = "none"
    max_num_seqs: int = 0
    max_num_waiting: int = 256
    max_model_len: int = 0
    max_new_tokens: int = 0
    max_loras: int = 16
    max_lora_rank: int = 64
    max_soft_prompts: int = 16
    max_virtual_tokens: int = 128
    num_threads: int = 0
    arguments: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no engine could be started with."""
        _require(self.device in {"auto", "cpu", "cuda"}, "device", "must be auto, cpu or cuda")
        _require(self.dtype in DTYPES, "dtype", f"must be one of {', '.join(DTYPES)}")
        _require(
            self.quantization in QUANTIZATIONS,
            "quantization",
            f"must be one of {', '.join(QUANTIZATIONS)} with vLLM; what else it can do at loading goes by its own name "
            "into engine.vllm.quantization",
        )
        for name in ("max_num_seqs", "max_model_len", "max_new_tokens", "num_threads"):
            _require(getattr(self, name) >= 0, name, "must be 0 (the engine's choice) or positive")
        for name in ("max_num_waiting", "max_loras", "max_lora_rank", "max_soft_prompts", "max_virtual_tokens"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(self.max_lora_rank <= LORA_RANKS[-1], "max_lora_rank", f"must be at most {LORA_RANKS[-1]}")

    @property
    def max_resident_loras(self) -> int:
        """LoRAs that vLLM holds in host memory, from which it brings up to ``max_loras`` to the device."""
        given = self.arguments.get("max_cpu_loras")
        return given if isinstance(given, int) else self.max_loras


def engine_arguments(
    config: VllmEngineConfig, folder: str | Path, base: BaseModelSpec, logging_file: Path
) -> "AsyncEngineArgs":
    """Return vLLM's arguments for an engine; loads nothing, but imports vLLM.

    LoRAs are kept to the layers that the codec lets them change. vLLM 0.32 would also make room for them at the
    embedding table and the output head, at a cost in each step; and at the table it takes the rows of a batch with a
    soft prompt for others than they are, which ends its process on the CPU and writes out of bounds on a GPU.

    Args:
        config: What the operator set.
        folder: The base's files on local disk, or a hub id.
        base: What the base has for adapters to change.
        logging_file: What :func:`server.engine.vllm.logs.write_logging_config` wrote.

    Raises:
        InvalidArgumentError: If ``config.arguments`` has a name that vLLM does not know or that Medley sets itself, or
            a value of another type; ``param`` names it.
        FailedPreconditionError: If the installed vLLM was built for another device, or the base is no safetensors.
    """
    from vllm import AsyncEngineArgs
    from vllm.config.logging import LoggingConfig
    from vllm.platforms import current_platform

    if config.device not in {"auto", current_platform.device_type}:
        raise FailedPreconditionError(
            f"engine.device is {config.device}, but the installed vLLM was built for {current_platform.device_type}"
        )
    given = check_arguments(config.arguments, {each.name: each.type for each in fields(AsyncEngineArgs)})
    if config.quantization != "none":
        if "quantization" in given:
            raise InvalidArgumentError(
                "engine.quantization and engine.vllm.quantization are both set; set one", param="quantization"
            )
        given["quantization"] = QUANTIZATIONS[config.quantization]
    _check_weights(Path(folder), given)
    return AsyncEngineArgs(
        **{
            "use_tqdm_on_load": False,
            "load_format": "safetensors",
            **given,
            **_lora_places(config, current_platform.device_type),
        },
        model=str(folder),
        dtype=config.dtype,
        max_model_len=config.max_model_len or None,
        max_num_seqs=config.max_num_seqs or None,
        enable_lora=True,
        lora_target_modules=sorted({path.rpartition(".")[2] for path in base.linear_shapes}),
        max_lora_rank=next(rank for rank in LORA_RANKS if rank >= config.max_lora_rank),
        enable_prompt_embeds=True,
        max_logprobs=MAX_LOGPROBS,
        disable_log_stats=True,
        enable_log_requests=False,
        logging_config=LoggingConfig(log_level="INFO", configure_logging=True, pylogging_config_file=str(logging_file)),
    )


def _lora_places(config: VllmEngineConfig, device_type: str) -> dict[str, int]:
    """Return how many LoRAs vLLM has places for, on the device and in host memory."""
    if device_type != "cpu":
        return {"max_loras": config.max_loras}
    # On the CPU vLLM 0.32 adds to rows that have no LoRA what is in the last place (it takes their -1 for an index).
    # It fills the first free place, so with one more than there can be LoRAs the last one stays zero.
    num_places = config.max_resident_loras + 1
    return {"max_loras": num_places, "max_cpu_loras": num_places}


def engine_config(arguments: "AsyncEngineArgs") -> "VllmConfig":
    """Return vLLM's configuration of an engine, which reads the model's config files.

    Raises:
        FailedPreconditionError: If vLLM refuses the model or the arguments; the message is vLLM's.
    """
    from vllm.exceptions import VLLMError

    try:
        return arguments.create_engine_config()
    except ValidationError as refused:
        raise FailedPreconditionError(f"vLLM refuses its configuration: {_reasons(refused)}") from refused
    except (VLLMError, ValueError, TypeError, NotImplementedError, OSError, RuntimeError) as refused:
        raise FailedPreconditionError(f"vLLM refuses its configuration: {refused}") from refused


def engine_environment(config: VllmEngineConfig) -> dict[str, str]:
    """Return the environment variables that must be set before vLLM is imported, and hold for its processes."""
    environment = {
        # The parent has threads and open sockets: a forked child would inherit them in whatever state they are.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        plugin.IS_OURS: "1",
    }
    if config.num_threads:
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(config.num_threads)}
    return environment


def check_arguments(given: Mapping[str, object], known: Mapping[str, Any]) -> dict[str, object]:
    """Return the arguments in the types vLLM declares.

    Args:
        given: What the operator wrote.
        known: vLLM's argument names and their types.

    Raises:
        InvalidArgumentError: As :func:`engine_arguments`.
    """
    return {name: _checked(name, value, known) for name, value in given.items()}


def _check_weights(folder: Path, given: Mapping[str, object]) -> None:
    if given.get("load_format") in {"pt", "npcache"}:
        raise InvalidArgumentError(
            "engine.vllm.load_format: weights that are pickled are not loaded; convert them to safetensors",
            param="engine.vllm.load_format",
        )
    if "load_format" not in given and folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise FailedPreconditionError(f"{folder} has no .safetensors files; convert the base to safetensors")


def _checked(name: str, value: object, known: Mapping[str, Any]) -> object:
    param = f"engine.vllm.{name}"
    if name in _SET_BY_MEDLEY:
        raise InvalidArgumentError(f"{param} is Medley's own to set; set {_SET_BY_MEDLEY[name]}", param=param)
    if name not in known or name.startswith("_"):
        near = difflib.get_close_matches(name, [each for each in known if not each.startswith("_")])
        advice = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InvalidArgumentError(f"vLLM has no engine argument {name}{advice}", param=param)
    hint = known[name]
    if members := _members(hint):
        # vLLM takes these by name, and makes the member of it.
        if value is None or value in members:
            return value
        raise InvalidArgumentError(f"{param} must be one of {', '.join(members)}", param=param)
    # vLLM writes out a few types as text only.
    if isinstance(hint, str):
        return value
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as refused:
        raise InvalidArgumentError(f"{param}: {_reasons(refused)}", param=param) from refused


def _members(hint: Any) -> list[str]:
    kinds = typing.get_args(hint) or (hint,)
    return [
        name for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum) for name in kind.__members__
    ]


def _reasons(refused: ValidationError) -> str:
    reasons = (
        f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" if each["loc"] else each["msg"]
        for each in refused.errors(include_url=False, include_input=False)
    )
    return "; ".join(dict.fromkeys(reasons))


def _require(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{param} {rule}", param=param)
