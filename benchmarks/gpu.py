"""``python -m benchmarks.gpu``: the native engine on a CUDA device, beside transformers and PEFT, and its LoRA kernels.

A command of its own, not one of ``python -m benchmarks``: it needs nothing but torch, transformers, PEFT and Triton.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from benchmarks.closed_batch import ClosedBatch, measure_in_turn
from benchmarks.hugging_face import HuggingFace
from benchmarks.models import random_prompts, write_base, write_loras
from benchmarks.ours import OurEngine, OurSide, config_for, row_requests
from server.engine.native.layers.lora import (
    LoraAdapter,
    LoraDelta,
    LoraPart,
    LoraSite,
    LoraStack,
    SegmentDelta,
    StackedDelta,
)
from server.engine.native.layers.lora_triton import GroupedLora

_SHAPES = ("flan-t5-small", "flan-t5-base")
_NUM_PROMPT_TOKENS, _NUM_NEW_TOKENS, _NUM_LORAS, _RANK = 200, 48, 8, 16
_MIXED_RANKS = (8, 16, 32, 64)
_WARM_UPS, _REPEATS = 20, 100


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """One closed batch.

    Attributes:
        shape: The base.
        num_rows: Rows, over 8 LoRAs of rank 16 on q and v.
        tokens_per_s: Per side.
        step_s: Our median decode step, in seconds.
    """

    shape: str
    num_rows: int
    tokens_per_s: dict[str, float]
    step_s: float


@dataclass(frozen=True, slots=True)
class KernelFigures:
    """One fused q, k and v layer whose rows have adapters of ranks 8 to 64 on q and v.

    Attributes:
        width: Of the model.
        num_rows: One token each while decoding, or all tokens of an encoder pass.
        num_adapters: Adapters present.
        triton_s: Seconds of both kernels.
        torch_s: Seconds of the torch layer.
    """

    width: int
    num_rows: int
    num_adapters: int
    triton_s: float
    torch_s: float


def measure_engine(shape: str, base: Path, folder: Path, *, num_rows: int, num_rounds: int) -> EngineFigures:
    """Measure our engine, PEFT's mixed batch and transformers on the base, in turn, in bfloat16."""
    loras = write_loras(folder / f"loras-{num_rows}", base, [_RANK] * _NUM_LORAS)
    prompts = random_prompts(base, [_NUM_PROMPT_TOKENS] * num_rows)
    row_loras = tuple(loras[row % len(loras)] for row in range(num_rows))
    batch = ClosedBatch(base, tuple(prompts), row_loras, _NUM_NEW_TOKENS, "bfloat16", num_threads=1)
    peers = HuggingFace(batch, device="cuda")
    with_loras = row_requests(prompts, _NUM_NEW_TOKENS, loras=row_loras)
    config = replace(config_for(base, [with_loras], dtype=batch.dtype, num_threads=0), device="cuda")
    with OurEngine(config) as engine:
        ours = OurSide(engine, with_loras)
        sides = {
            "ours": ours.serve,
            "ours_base": OurSide(engine, row_requests(prompts, _NUM_NEW_TOKENS)).serve,
            "peft_mixed": peers.mixed,
            "transformers_base": peers.base_only,
        }
        measured = measure_in_turn(sides, num_rows=num_rows, num_new_tokens=_NUM_NEW_TOKENS, num_rounds=num_rounds)
    tokens_per_s = {name: side.tokens_per_s for name, side in measured.items()}
    return EngineFigures(shape, num_rows, tokens_per_s, statistics.median(ours.steps_s))


def measure_decode_kernels(width: int, *, num_rows: int, num_adapters: int) -> KernelFigures:
    """Time one decode step's share of a layer; rows take the adapters in turn."""
    adapters = _adapters(width, num_adapters)
    digests = [str(row % num_adapters) for row in range(num_rows)]
    segments = [(row, row + 1, adapters[digest]) for row, digest in enumerate(digests)]
    torch_layer = StackedDelta(LoraStack(adapters), digests, device=torch.device("cuda"))
    return _kernel_figures(width, num_rows, segments, torch_layer)


def measure_encoder_kernels(width: int, *, num_tokens: int, num_adapters: int) -> KernelFigures:
    """Time one encoder pass's share of a layer; each adapter has as many tokens."""
    each = num_tokens // num_adapters
    adapters = _adapters(width, num_adapters).values()
    segments = [(place * each, (place + 1) * each, adapter) for place, adapter in enumerate(adapters)]
    return _kernel_figures(width, each * num_adapters, segments, SegmentDelta(segments))


def _adapters(width: int, count: int) -> dict[str, LoraAdapter]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    ranks = [_MIXED_RANKS[index % len(_MIXED_RANKS)] for index in range(count)]
    return {
        str(index): {
            "qkv": LoraSite(
                draw(width, 2 * rank),
                (LoraPart(0, width, draw(rank, width)), LoraPart(2 * width, 3 * width, draw(rank, width))),
            )
        }
        for index, rank in enumerate(ranks)
    }


def _kernel_figures(
    width: int, num_rows: int, segments: Sequence[tuple[int, int, LoraAdapter]], torch_layer: LoraDelta
) -> KernelFigures:
    triton_layer = GroupedLora(device=torch.device("cuda"), dtype=torch.bfloat16).delta(segments)
    x_NI = torch.randn(num_rows, width, device="cuda", dtype=torch.bfloat16)
    y_NO = torch.randn(num_rows, 3 * width, device="cuda", dtype=torch.bfloat16)
    triton_s, torch_s = (
        _device_s(lambda layer=layer: layer.add("qkv", x_NI, y_NO)) for layer in (triton_layer, torch_layer)
    )
    return KernelFigures(width, num_rows, len({id(adapter) for *_, adapter in segments}), triton_s, torch_s)


def _device_s(run: Callable[[], None]) -> float:
    """Return the median seconds of a run, launches included, from device events."""
    for _ in range(_WARM_UPS):
        run()
    found = []
    for _ in range(_REPEATS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(found)


def main() -> None:
    """Run all and print the figures; ``--json FILE`` keeps them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--rows", type=int, action="append", help="default: 16, 64 and 256")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kernels = [
        *(
            measure_decode_kernels(512, num_rows=rows, num_adapters=count)
            for rows, count in ((16, 8), (64, 32), (256, 32))
        ),
        *(measure_encoder_kernels(512, num_tokens=tokens, num_adapters=8) for tokens in (2048, 16384)),
    ]
    for found in kernels:
        print(
            f"width {found.width}, {found.num_rows} rows, {found.num_adapters} adapters: "
            f"Triton {found.triton_s * 1e6:.0f} µs, torch {found.torch_s * 1e6:.0f} µs"
        )
    engines: list[EngineFigures] = []
    for shape in _SHAPES:
        with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
            base = write_base(Path(name) / "base", shape)
            for num_rows in arguments.rows or (16, 64, 256):
                figures = measure_engine(shape, base, Path(name), num_rows=num_rows, num_rounds=arguments.rounds)
                engines.append(figures)
                sides = ", ".join(f"{side} {speed:.0f}" for side, speed in figures.tokens_per_s.items())
                print(f"{shape}, {num_rows} rows: {sides} tokens/s; decode step {figures.step_s * 1e3:.2f} ms")
    if arguments.json:
        figures_by_kind = {"engine": list(map(asdict, engines)), "kernels": list(map(asdict, kernels))}
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**figures_by_kind, **device}, indent=2) + "\n")


if __name__ == "__main__":
    main()
