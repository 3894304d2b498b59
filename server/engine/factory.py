"""From what the operator set to the engine, importing the chosen one only. Starts nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters.errors import AdapterError
from adapters.strict_json import parse_object, show
from server.core.errors import FailedPreconditionError
from server.engine.base import Engine
from server.engine.model_folder import model_folder

if TYPE_CHECKING:
    from server.engine.native.config import NativeEngineConfig

EngineName = Literal["native", "vllm", "fake"]
Quantization = Literal["none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double"]

_CONFIG_FILE = "config.json"
_NATIVE_ARCHITECTURES = frozenset({"T5ForConditionalGeneration"})
_DECODER_ONLY_SUFFIX = "ForCausalLM"
_MAX_NUM_SEQS, _MAX_MODEL_LEN, _MAX_NEW_TOKENS = 32, 1024, 256


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an operator can set about the engine, whichever it is.

    A setting that an engine has no counterpart of is without effect there; docs/engines.md has them side by side.

    Attributes:
        name: Which engine; ``auto`` goes by the base's architecture.
        model: Folder or hub id of the base; empty means the shipped one.
        device: ``auto``, ``cpu`` or ``cuda``; the fake engine has none.
        dtype: Serving dtype; ``auto`` is float32 for the native engine, and the checkpoint's for vLLM.
        quantization: How the base's linear layers are kept; the fake engine has none.
        max_num_seqs: Most requests in one batch; 0 is 32, and vLLM's own choice for vLLM.
        max_num_waiting: Most requests in the queue.
        max_wait_s: Longest wait there that a request may have to expect of the native engine; 0 for any.
        max_num_batched_tokens: Most encoder tokens of one step of the native engine.
        max_prefill_tokens_per_step: Most encoder work between two tokens of a running row of the native engine; 0
            leaves it to the engine.
        max_flood_rows: Most rows of callers with more requests than their share of the native engine's batch, while
            another caller is about; 0 leaves it to the engine.
        max_model_len: Most encoder positions, virtual tokens included; without an encoder, most positions of prompt
            and answer. 0 is 1024, and the model's context for vLLM.
        max_new_tokens: Most generated tokens of a request; 0 is 256, and whatever fits for vLLM.
        max_loras: Weight adapters resident at once.
        max_lora_rank: Largest rank accepted.
        max_soft_prompts: Soft prompts resident at once.
        max_virtual_tokens: Longest soft prompt accepted.
        max_host_adapter_bytes: Most bytes of adapters that the native engine keeps ready in host memory.
        num_threads: CPU threads of the step loop; 0 leaves it to the engine.
        step_time_s: Seconds one step of the fake engine takes.
        own_process: Whether the engine computes in a process of its own; ``auto`` leaves it to the engine. vLLM always
            does.
        vllm: Further engine arguments of vLLM, by vLLM's names.
    """

    name: Literal["auto"] | EngineName = "auto"
    model: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization = "none"
    max_num_seqs: int = 0
    max_num_waiting: int = 256
    max_wait_s: float = 0.0
    max_num_batched_tokens: int = 8192
    max_prefill_tokens_per_step: int = 0
    max_flood_rows: int = 0
    max_model_len: int = 0
    max_new_tokens: int = 0
    max_loras: int = 16
    max_lora_rank: int = 64
    max_soft_prompts: int = 16
    max_virtual_tokens: int = 128
    max_host_adapter_bytes: int = 2 << 30
    num_threads: int = 0
    step_time_s: float = 0.0
    own_process: Literal["auto"] | bool = "auto"
    vllm: Mapping[str, object] = field(default_factory=dict)


def create_engine(config: EngineConfig, model: str) -> Engine:
    """Return the engine ``config`` names, not started.

    Args:
        config: What the operator set.
        model: Folder or hub id of the base; empty lets the fake engine make one up.

    Raises:
        InvalidArgumentError: If the engine cannot be what the operator wants of it.
        FailedPreconditionError: If there is no such base, no engine serves its architecture, or the engine that does
            is not installed.
        AdapterError: If the fake engine cannot read the base's shapes.
    """
    name = _engine_for(model) if config.name == "auto" else config.name
    if name == "fake":
        return _fake(config, model)
    return _native(config, model) if name == "native" else _vllm(config, model)


def _engine_for(model: str) -> EngineName:
    architecture = _architecture(model)
    if architecture in _NATIVE_ARCHITECTURES:
        return "native"
    if architecture.endswith(_DECODER_ONLY_SUFFIX):
        return "vllm"
    raise FailedPreconditionError(
        f"no engine is made for {show(architecture)}, the architecture of {model}: native serves "
        f"{', '.join(sorted(_NATIVE_ARCHITECTURES))}, vllm serves …{_DECODER_ONLY_SUFFIX} (Llama, Qwen, Mistral and "
        "others); --engine tries one all the same"
    )


def _architecture(model: str) -> str:
    """Return the class that a base names in its configuration; empty where it names none."""
    file = model_folder(model, only=(_CONFIG_FILE,)) / _CONFIG_FILE
    try:
        architectures = parse_object(file.read_bytes(), _CONFIG_FILE).get("architectures")
    except (OSError, AdapterError) as error:
        raise FailedPreconditionError(f"cannot read the base's {_CONFIG_FILE}: {error}") from error
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _fake(config: EngineConfig, model: str) -> Engine:
    from adapters.base_spec import read_base_spec
    from server.engine.fake import FAKE_BASE, FakeEngine, FakeEngineConfig

    fake = FakeEngineConfig(
        base=read_base_spec(Path(model)) if model else FAKE_BASE,
        step_time_s=config.step_time_s,
        max_num_seqs=config.max_num_seqs or _MAX_NUM_SEQS,
        max_num_waiting=config.max_num_waiting,
        max_model_len=config.max_model_len or _MAX_MODEL_LEN,
        max_new_tokens=config.max_new_tokens or _MAX_NEW_TOKENS,
        max_loras=config.max_loras,
        max_lora_rank=config.max_lora_rank,
        max_soft_prompts=config.max_soft_prompts,
        max_virtual_tokens=config.max_virtual_tokens,
    )
    return _placed(partial(FakeEngine, fake), own_process=config.own_process is True)


def _native(config: EngineConfig, model: str) -> Engine:
    from server.engine.native.config import NativeEngineConfig

    native = NativeEngineConfig(
        model=model,
        device=config.device,
        dtype="float32" if config.dtype == "auto" else config.dtype,
        quantization=config.quantization,
        max_num_seqs=config.max_num_seqs or _MAX_NUM_SEQS,
        max_num_waiting=config.max_num_waiting,
        max_wait_s=config.max_wait_s,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_prefill_tokens_per_step=config.max_prefill_tokens_per_step,
        max_flood_rows=config.max_flood_rows,
        max_model_len=config.max_model_len or _MAX_MODEL_LEN,
        max_new_tokens=config.max_new_tokens or _MAX_NEW_TOKENS,
        max_loras=config.max_loras,
        max_lora_rank=config.max_lora_rank,
        max_soft_prompts=config.max_soft_prompts,
        max_virtual_tokens=config.max_virtual_tokens,
        max_host_adapter_bytes=config.max_host_adapter_bytes,
        num_threads=config.num_threads,
    )
    return _placed(partial(make_native, native), own_process=config.own_process is not False)


def make_native(config: "NativeEngineConfig") -> Engine:
    """Return a native engine, not started; what imports torch is imported here, in the process that computes."""
    from server.engine.native.engine import NativeEngine

    engine: Engine = NativeEngine(config)
    return engine


def _placed(make: Callable[[], Engine], *, own_process: bool) -> Engine:
    """Return an engine that computes here, or one that computes in a process of its own."""
    if not own_process:
        return make()
    from server.engine.process.engine import ProcessEngine

    return ProcessEngine(make)


def _vllm(config: EngineConfig, model: str) -> Engine:
    if _architecture(model) in _NATIVE_ARCHITECTURES:
        raise FailedPreconditionError(f"{model} has an encoder; the vllm engine serves decoder-only bases: set --model")
    if find_spec("vllm") is None:
        raise FailedPreconditionError(
            f"{model} is for the vllm engine, which is not installed: pip install 'medley[vllm]' on a machine with a "
            "GPU; docs/engines.md says how on one without"
        )
    from server.engine.vllm.config import VllmEngineConfig
    from server.engine.vllm.engine import VllmEngine

    return VllmEngine(
        VllmEngineConfig(
            model=model,
            device=config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens,
            max_loras=config.max_loras,
            max_lora_rank=config.max_lora_rank,
            max_soft_prompts=config.max_soft_prompts,
            max_virtual_tokens=config.max_virtual_tokens,
            num_threads=config.num_threads,
            arguments=config.vllm,
        )
    )
