"""The least a decode step can take: the bytes it must read over the bandwidth measured on the spot.

Counted from the files, not from the engine: every decoder weight and the output head once in the serving dtype, the
keys and values of every row in the cache's dtype, the decoder's share of every LoRA present once. Activations, norms
and position biases are left out; they are under a hundredth. Where all of it fits the processor's cache, a step can be
faster than this.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.closed_batch import ClosedBatch
from server.engine.native.families.seq2seq_weights import read_config
from server.engine.native.kv_cache import cache_dtype

# Read once a request, in prefill: the encoder, and the keys and values of its output.
_CROSS_KEY_VALUE = ("EncDecAttention.k.", "EncDecAttention.v.")


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What one decode step reads.

    Attributes:
        weights_bytes: The decoder's linear layers and the head.
        cross_bytes: Keys and values of the encoder's output, all rows.
        self_bytes: Keys and values of the rows' own past, halfway through their output.
        lora_bytes: A and B of every LoRA present.
    """

    weights_bytes: int
    cross_bytes: int
    self_bytes: int
    lora_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cross_bytes + self.self_bytes + self.lora_bytes


def step_bytes(batch: ClosedBatch) -> StepBytes:
    """Count what one decode step of a batch reads."""
    dtype = getattr(torch, batch.dtype)
    config = read_config(batch.base)
    cached = cache_dtype(torch.empty(0, dtype=dtype), config.d_kv)
    position_bytes = 2 * config.num_decoder_layers * config.num_heads * config.d_kv * cached.itemsize
    num_lora = sum(_decoder_numbers(lora.path / "adapter_model.safetensors") for lora in batch.rows_by_lora)
    return StepBytes(
        weights_bytes=(_decoder_numbers(batch.base / "model.safetensors") + _head_numbers(batch.base)) * dtype.itemsize,
        cross_bytes=sum(len(prompt) for prompt in batch.prompts) * position_bytes,
        self_bytes=len(batch.prompts) * (batch.num_new_tokens + 1) * position_bytes // 2,
        lora_bytes=num_lora * dtype.itemsize,
    )


def read_bandwidth(*, num_bytes: int = 1 << 29, num_repeats: int = 8) -> float:
    """Return bytes per second read by a sum over a buffer far larger than any cache, all threads, the best of several.

    Args:
        num_bytes: Size of the buffer.
        num_repeats: How often it is read.
    """
    buffer = torch.ones(num_bytes // 4)
    durations_s = []
    for _ in range(num_repeats):
        start_s = time.perf_counter()
        buffer.sum()
        durations_s.append(time.perf_counter() - start_s)
    return num_bytes / min(durations_s)


def _decoder_numbers(file: Path) -> int:
    """Count the numbers of a file's decoder matrices that a decode step reads."""
    return sum(
        rows * columns
        for name, (rows, columns) in _matrices(file)
        if "decoder.block." in name
        and "relative_attention_bias" not in name
        and not any(part in name for part in _CROSS_KEY_VALUE)
    )


def _head_numbers(base: Path) -> int:
    shapes = dict(_matrices(base / "model.safetensors"))
    rows, columns = shapes.get("lm_head.weight", shapes["shared.weight"])
    return rows * columns


def _matrices(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            shape = opened.get_slice(name).get_shape()
            if len(shape) == 2:
                yield name, (shape[0], shape[1])
