"""What the native engine is told at start. Knows no settings, no environment."""

from dataclasses import dataclass

from server.core.errors import InvalidArgumentError

QUANTIZATIONS = ("none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double")


@dataclass(frozen=True, slots=True)
class NativeEngineConfig:
    """Model, place and limits of a native engine.

    Attributes:
        model: Folder with the model's files, or a hub id.
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA where there is one).
        dtype: Serving dtype, ``float32`` or ``bfloat16``.
        quantization: How the base's linear layers are kept: one of :data:`QUANTIZATIONS`.
        max_num_seqs: Most requests in one batch.
        max_num_waiting: Most requests in the queue.
        max_wait_s: Longest wait there that a request may have to expect; 0 for any.
        max_num_batched_tokens: Most encoder positions one step takes in, virtual tokens included.
        max_prefill_tokens_per_step: Most encoder work between two tokens of a running row, as that of so many encoder
            positions; up to four times as much while few rows run and more wait. 0 leaves the choice to the engine.
        max_flood_rows: Most rows of tenants with more requests than their share of the batch, while another is about; 0
            leaves the choice to the engine.
        max_model_len: Most encoder positions of a request, virtual tokens included.
        max_new_tokens: Most generated tokens of a request.
        max_loras: Weight adapters resident at once.
        max_lora_rank: Largest LoRA rank accepted.
        max_soft_prompts: Soft prompts and prefixes resident at once.
        max_virtual_tokens: Longest soft prompt or prefix accepted; every row has room for so long a prefix.
        max_host_adapter_bytes: Most bytes of adapters kept ready in host memory; 0 reads files at every load.
        num_threads: CPU threads of a forward pass; 0 leaves torch's own choice.

    Raises:
        InvalidArgumentError: If a value is out of range; ``param`` names the field.
    """

    model: str
    device: str = "auto"
    dtype: str = "float32"
    quantization: str = "none"
    max_num_seqs: int = 32
    max_num_waiting: int = 256
    max_wait_s: float = 0.0
    max_num_batched_tokens: int = 8192
    max_prefill_tokens_per_step: int = 0
    max_flood_rows: int = 0
    max_model_len: int = 1024
    max_new_tokens: int = 256
    max_loras: int = 16
    max_lora_rank: int = 64
    max_soft_prompts: int = 16
    max_virtual_tokens: int = 128
    max_host_adapter_bytes: int = 2 << 30
    num_threads: int = 0

    def __post_init__(self) -> None:
        """Refuse limits no request could live within."""
        if self.device not in {"auto", "cpu", "cuda"}:
            raise InvalidArgumentError("device must be auto, cpu or cuda", param="device")
        if self.dtype not in {"float32", "bfloat16"}:
            raise InvalidArgumentError("dtype must be float32 or bfloat16", param="dtype")
        for name in ("max_host_adapter_bytes", "max_prefill_tokens_per_step", "max_flood_rows", "max_wait_s"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError(f"{name} must be 0 or more", param=name)
        if self.quantization not in QUANTIZATIONS:
            raise InvalidArgumentError(f"quantization must be one of {', '.join(QUANTIZATIONS)}", param="quantization")
        if self.num_threads < 0:
            raise InvalidArgumentError("num_threads must be 0 (torch's choice) or positive", param="num_threads")
        positive = (
            "max_num_seqs max_num_waiting max_num_batched_tokens max_model_len max_new_tokens "
            "max_loras max_lora_rank max_soft_prompts max_virtual_tokens"
        )
        for name in positive.split():
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1", param=name)
        if self.max_num_batched_tokens < self.max_model_len:
            raise InvalidArgumentError(
                "max_num_batched_tokens must be at least max_model_len, or the longest request never starts",
                param="max_num_batched_tokens",
            )
