"""``python -m benchmarks quantization``: one base kept in every way the native engine can keep it here, all in turn.

Gives what the base's weights take and how fast mixed LoRA rows are served over it. It says nothing of quality: the
bases have random weights.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.closed_batch import Measured, measure_in_turn
from benchmarks.models import SHAPES, random_prompts, write_base, write_loras
from benchmarks.ours import OurEngine, OurSide, config_for, row_requests
from server.engine.base import EngineRequest
from server.engine.native.config import QUANTIZATIONS, NativeEngineConfig
from server.engine.native.kernels import cpu

_NUM_LORAS, _RANK = 8, 16
_NUM_PROMPT_TOKENS, _NUM_NEW_TOKENS = 200, 48


@dataclass(frozen=True, slots=True)
class KeptBase:
    """One way of keeping a base.

    Attributes:
        shape: The base.
        quantization: How its linears are kept.
        num_weight_bytes: What embeddings, head and linears take.
        tokens_per_s: Generated tokens of all rows over the median round.
        tokens_per_s_over_none: Speed over that of the base that is not quantized.
        bytes_over_none: Memory over that of the base that is not quantized.
    """

    shape: str
    quantization: str
    num_weight_bytes: int
    tokens_per_s: float
    tokens_per_s_over_none: float
    bytes_over_none: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``quantization`` to the benchmarks' command line."""
    command = commands.add_parser("quantization", help="one base in 16, 8 and 4 bits: memory and speed")
    command.add_argument("--shape", choices=SHAPES, action="append", help="default: flan-t5-small")
    command.add_argument("--rows", type=int, default=16, help="requests at once (default 16)")
    command.add_argument("--rounds", type=int, default=5, help="measurements of each way (default 5)")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    command.add_argument("--json", type=Path, help="write the figures here")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    results: list[KeptBase] = []
    for shape in arguments.shape or ["flan-t5-small"]:
        with tempfile.TemporaryDirectory() as name:
            results += run_shape(Path(name), shape, arguments)
    for kept in results:
        print(
            f"{kept.shape} {kept.quantization:24} {kept.num_weight_bytes / 1e6:8.1f} MB ({kept.bytes_over_none:.2f}) "
            f"{kept.tokens_per_s:7.0f} tokens/s ({kept.tokens_per_s_over_none:.2f})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(kept) for kept in results], indent=2) + "\n")


def run_shape(folder: Path, shape: str, arguments: argparse.Namespace) -> list[KeptBase]:
    """Measure one base in every way.

    Raises:
        MedleyError: If a way cannot be had, as where bitsandbytes is not installed.
    """
    base = write_base(folder / "base", shape)
    loras = write_loras(folder, base, [_RANK] * _NUM_LORAS)
    prompts = random_prompts(base, [_NUM_PROMPT_TOKENS] * arguments.rows)
    rows = [loras[row % _NUM_LORAS] for row in range(arguments.rows)]
    requests = row_requests(prompts, _NUM_NEW_TOKENS, loras=rows)
    config = config_for(base, [requests], dtype="bfloat16", num_threads=arguments.threads)
    return _measure(shape, replace(config, device=arguments.device), requests, arguments.rounds)


def _measure(
    shape: str, config: NativeEngineConfig, requests: Sequence[EngineRequest], num_rounds: int
) -> list[KeptBase]:
    with ExitStack() as stack:
        ways = _ways(config.device)
        engines = {name: stack.enter_context(OurEngine(replace(config, quantization=name))) for name in ways}
        sides = {name: OurSide(engine, requests).serve for name, engine in engines.items()}
        measured = measure_in_turn(sides, num_rows=len(requests), num_new_tokens=_NUM_NEW_TOKENS, num_rounds=num_rounds)
        return [_kept(shape, name, engines, measured) for name in ways]


def _ways(device: str) -> list[str]:
    has_int8 = cpu.can_multiply_int8(torch.empty(16, 16, device=device))
    return [name for name in QUANTIZATIONS if name != "int8" or has_int8]


def _kept(shape: str, name: str, engines: dict[str, OurEngine], measured: dict[str, Measured]) -> KeptBase:
    num_weight_bytes = engines[name].info.num_weight_bytes
    return KeptBase(
        shape=shape,
        quantization=name,
        num_weight_bytes=num_weight_bytes,
        tokens_per_s=measured[name].tokens_per_s,
        tokens_per_s_over_none=measured[name].tokens_per_s / measured["none"].tokens_per_s,
        bytes_over_none=num_weight_bytes / engines["none"].info.num_weight_bytes,
    )
