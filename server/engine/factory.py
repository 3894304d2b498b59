"""From an engine's name to the engine, importing the chosen one only. Starts nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.engine.base import Engine

Quantization = Literal["none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an operator can set about the engine, whichever it is.

    Attributes:
        name: Which engine.
        model: Folder or hub id of the base; empty means the shipped one.
        device: ``auto``, ``cpu`` or ``cuda``; the fake engine has none.
        dtype: Serving dtype.
        quantization: How the base's linear layers are kept; the fake engine has none.
        max_num_seqs: Most requests in one batch.
        max_num_waiting: Most requests in the queue.
        max_num_batched_tokens: Most encoder tokens of one step.
        max_prefill_tokens_per_step: Most encoder work between two tokens of a running row; 0 leaves it to the engine.
        max_model_len: Most encoder positions, virtual tokens included.
        max_new_tokens: Most generated tokens of a request.
        max_loras: Weight adapters resident at once.
        max_lora_rank: Largest rank accepted.
        max_soft_prompts: Soft prompts resident at once.
        max_virtual_tokens: Longest soft prompt accepted.
        max_host_adapter_bytes: Most bytes of adapters kept ready in host memory.
        num_threads: CPU threads of the step loop; 0 leaves it to the engine.
        step_time_s: Seconds one step of the fake engine takes.
    """

    name: Literal["native", "fake"] = "native"
    model: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Quantization = "none"
    max_num_seqs: int = 32
    max_num_waiting: int = 256
    max_num_batched_tokens: int = 8192
    max_prefill_tokens_per_step: int = 0
    max_model_len: int = 1024
    max_new_tokens: int = 256
    max_loras: int = 16
    max_lora_rank: int = 64
    max_soft_prompts: int = 16
    max_virtual_tokens: int = 128
    max_host_adapter_bytes: int = 2 << 30
    num_threads: int = 0
    step_time_s: float = 0.0


def create_engine(config: EngineConfig, model: str) -> Engine:
    """Return the engine ``config`` names, not started.

    Args:
        config: What the operator set.
        model: Folder or hub id of the base; empty lets the fake engine make one up.

    Raises:
        AdapterError: If the fake engine cannot read the base's shapes.
    """
    return _fake(config, model) if config.name == "fake" else _native(config, model)


def _fake(config: EngineConfig, model: str) -> Engine:
    from adapters.base_spec import read_base_spec
    from server.engine.fake import FAKE_BASE, FakeEngine, FakeEngineConfig

    return FakeEngine(
        FakeEngineConfig(
            base=read_base_spec(Path(model)) if model else FAKE_BASE,
            step_time_s=config.step_time_s,
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens,
            max_loras=config.max_loras,
            max_lora_rank=config.max_lora_rank,
            max_soft_prompts=config.max_soft_prompts,
            max_virtual_tokens=config.max_virtual_tokens,
        )
    )


def _native(config: EngineConfig, model: str) -> Engine:
    from server.engine.native.config import NativeEngineConfig
    from server.engine.native.engine import NativeEngine

    engine: Engine = NativeEngine(
        NativeEngineConfig(
            model=model,
            device=config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_prefill_tokens_per_step=config.max_prefill_tokens_per_step,
            max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens,
            max_loras=config.max_loras,
            max_lora_rank=config.max_lora_rank,
            max_soft_prompts=config.max_soft_prompts,
            max_virtual_tokens=config.max_virtual_tokens,
            max_host_adapter_bytes=config.max_host_adapter_bytes,
            num_threads=config.num_threads,
        )
    )
    return engine
