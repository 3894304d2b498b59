"""``python -m benchmarks scale``: what many adapters cost. Four parts, each with its figures and its picture.

Reads the command line, writes the base, runs the parts one after the other. What a part is: ``benchmarks/scale_*.py``.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.machine import describe_machine
from benchmarks.models import MEDLEY_MINI, SHAPES, write_base
from benchmarks.scale_case import ScaleCase
from benchmarks.scale_cold_load import ColdLoadPlan, run_cold_load
from benchmarks.scale_memory import MemoryPlan, run_memory
from benchmarks.scale_registered import RegisteredPlan, run_registered
from benchmarks.scale_slots import SlotsPlan, run_slots


class Result(Protocol):
    """What every part returns: a dataclass of what it measured."""

    def headline(self) -> dict[str, float]:
        """Return its figures."""
        ...

    def plot(self, picture: Path) -> None:
        """Write its picture."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        shape: The base it is run on unless another is asked for.
        run: Runs it.
        quick: Runs it on so few requests that its figures mean nothing.
    """

    shape: str
    run: Callable[[ScaleCase], Result]
    quick: Callable[[ScaleCase], Result]


PARTS: Mapping[str, Part] = {
    "registered": Part(
        "flan-t5-small",
        lambda case: run_registered(case, RegisteredPlan()),
        lambda case: run_registered(case, RegisteredPlan(counts=(2, 20), num_slots=4, num_requests=16, num_rounds=1)),
    ),
    "slots": Part(
        "flan-t5-small",
        lambda case: run_slots(case, SlotsPlan()),
        lambda case: run_slots(case, SlotsPlan(num_adapters=8, num_requests=16, num_rounds=1)),
    ),
    "cold-load": Part(
        "flan-t5-small",
        lambda case: run_cold_load(case, ColdLoadPlan()),
        lambda case: run_cold_load(case, ColdLoadPlan(num_rows=2, num_new_tokens=32, num_rounds=1, num_cold=20)),
    ),
    # Memory does not depend on the base's size, and ten thousand loads are the sooner done.
    "memory": Part(
        MEDLEY_MINI,
        lambda case: run_memory(case, MemoryPlan()),
        lambda case: run_memory(case, MemoryPlan(num_cycles=200, num_adapters=12, num_slots=2, num_kept=5)),
    ),
}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``scale`` to the benchmarks' command line."""
    parser = commands.add_parser("scale", help="what many adapters cost: throughput, latency, bystanders, memory")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="default: all, one after the other")
    parser.add_argument("--quick", action="store_true", help="a few requests each: shows that it runs, not how fast")
    parser.add_argument("--shape", choices=SHAPES, help="default: what each part is meant for")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write scale-PART.png of each part into this folder")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    figures: dict[str, object] = {}
    for name in arguments.part or PARTS:
        result = _run_part(PARTS[name], arguments)
        headline = result.headline()
        for key, figure in headline.items():
            print(f"{name}: {key}: {figure:.3f}", flush=True)
        figures[name] = {**headline, **asdict(result)}
        if arguments.plot:
            _plot(result, arguments.plot, name)
    if arguments.json:
        figures |= describe_machine(arguments.threads or torch.get_num_threads())
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _run_part(part: Part, arguments: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        base = write_base(Path(name) / "base", arguments.shape or part.shape, seed=arguments.seed)
        case = ScaleCase(
            folder=Path(name) / "adapters",
            base=base,
            dtype=arguments.dtype,
            num_threads=arguments.threads,
            seed=arguments.seed,
        )
        return (part.quick if arguments.quick else part.run)(case)


def _plot(result: Result, folder: Path, name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    result.plot(folder / f"scale-{name}.png")
