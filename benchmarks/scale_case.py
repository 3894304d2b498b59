"""What every part of the scale benchmark is given, and the base they share. Knows no part."""

from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.base_spec import read_base_spec
from benchmarks.trace import TraceShape
from server.engine.native.engine import NativeEngineConfig


@dataclass(frozen=True, slots=True)
class ScaleCase:
    """A base, and how it is served.

    Attributes:
        folder: Where adapters may be written; empty at first.
        base: The base's folder.
        dtype: Serving dtype.
        num_threads: CPU threads; 0 is torch's own choice.
        max_num_seqs: Rows of the batch.
        prompt_tokens: Fewest and most encoder tokens of a request.
        new_tokens: Fewest and most tokens of its answer.
        seed: Seed of every trace.
    """

    folder: Path
    base: Path
    dtype: str = "bfloat16"
    num_threads: int = 0
    max_num_seqs: int = 32
    prompt_tokens: tuple[int, int] = (8, 512)
    new_tokens: tuple[int, int] = (8, 128)
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """Token ids of the base stay below."""
        return read_base_spec(self.base).vocab_size

    def trace_shape(self, num_adapters: int, zipf_exponent: float) -> TraceShape:
        """Return the shape of a trace over so many adapters."""
        return TraceShape(
            num_adapters=num_adapters,
            zipf_exponent=zipf_exponent,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            vocab_size=self.vocab_size,
        )

    def engine_config(self, *, num_slots: int, max_host_adapter_bytes: int = 2 << 30) -> NativeEngineConfig:
        """Return an engine with so many adapter slots, and room for any trace to wait."""
        return NativeEngineConfig(
            str(self.base),
            device="cuda" if torch.cuda.is_available() else "cpu",
            dtype=self.dtype,
            max_num_seqs=self.max_num_seqs,
            max_num_waiting=1_000_000,
            max_model_len=self.prompt_tokens[1],
            max_new_tokens=self.new_tokens[1],
            max_loras=num_slots,
            max_soft_prompts=1,
            max_virtual_tokens=1,
            max_host_adapter_bytes=max_host_adapter_bytes,
            num_threads=self.num_threads,
        )
