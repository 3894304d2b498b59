"""``python -m benchmarks engine``: the native engine beside its peers on closed batches, in turn, in one run.

Reads the command line, decides the cases, and writes the figures. What a case is: :mod:`benchmarks.engine_case`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.adapter_cost import AdapterCost, run_adapter_cost
from benchmarks.closed_batch import ClosedBatch
from benchmarks.ctranslate2_peer import convert
from benchmarks.engine_case import OURS_INT8, CaseResult, run_case
from benchmarks.engine_report import markdown, plot
from benchmarks.machine import describe_machine
from benchmarks.models import SHAPES, random_prompts, write_base, write_loras

# The case of the headline figures; its number of rows is also the one whose tokens are compared in float32.
_HEADLINE_SHAPE, _HEADLINE_ROWS, _HEADLINE_DTYPE = "flan-t5-small", 16, "bfloat16"
_HEADLINE_PEERS = {
    "ours_over_peft": "peft_mixed",
    "ours_over_ct2_float32": "ct2_float32_base",
    "ours_over_ct2_int8": "ct2_int8_base",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        shapes: Bases.
        rows: Batch sizes in bfloat16; float32 is run at the headline's only, to compare tokens.
        num_rounds: Measurements of each side.
        num_threads: CPU threads of every side.
        has_all_peers: Whether those are measured too that serve adapter by adapter.
        num_loras: Most LoRAs in a batch.
        rank: Their rank, on q and v.
        num_prompt_tokens: Encoder tokens of a row.
        num_new_tokens: Tokens it generates.
    """

    shapes: tuple[str, ...]
    rows: tuple[int, ...]
    num_rounds: int
    num_threads: int
    has_all_peers: bool
    num_loras: int = 8
    rank: int = 16
    num_prompt_tokens: int = 200
    num_new_tokens: int = 48


@dataclass(frozen=True, slots=True)
class Results:
    """Everything measured."""

    cases: tuple[CaseResult, ...]
    adapter_costs: tuple[AdapterCost, ...]

    def headline(self) -> dict[str, float]:
        """Return the headline figures, as far as their cases were run."""
        figures = {}
        for case in self.cases:
            found = (case.shape, len(case.batch.prompts), case.batch.dtype)
            if found == (_HEADLINE_SHAPE, _HEADLINE_ROWS, _HEADLINE_DTYPE):
                figures |= {key: case.ratios[peer] for key, peer in _HEADLINE_PEERS.items()}
                if OURS_INT8 in case.measured:
                    figures["ours_int8_over_ct2_int8"] = case.ratio(OURS_INT8, _HEADLINE_PEERS["ours_over_ct2_int8"])
                if case.roofline:
                    figures["step_over_roofline"] = case.roofline.step_over_roofline
        for cost in self.adapter_costs:
            if cost.shape == _HEADLINE_SHAPE:
                figures["lora32_over_base"] = cost.loras_over_base
                figures["prompt20_over_tokens20"] = cost.prompts_over_tokens
        return figures


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``engine`` to the benchmarks' command line."""
    parser = commands.add_parser("engine", help="closed batches: the native engine beside its peers")
    parser.add_argument(
        "--quick", action="store_true", help="one case, without the peers that serve LoRA by LoRA; minutes"
    )
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all; flan-t5-small if quick")
    parser.add_argument(
        "--rows", type=int, action="append", help="in bfloat16; default: 1, 8, 16, 32 and 64; 16 if quick"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of every side; 0 is torch's own choice")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write engine.md and engine.png into this folder")
    parser.set_defaults(run=_run)


def run_plan(plan: Plan, keep: Callable[[Results], None]) -> Results:
    """Run every case of a plan, printing each as it ends.

    Args:
        plan: What is run.
        keep: Called after every base with the results so far, so that a long run that fails late leaves them.

    Raises:
        RuntimeError: If a side stops early, or if tokens differ that must not.
    """
    torch.set_num_threads(plan.num_threads)
    cases: list[CaseResult] = []
    costs: list[AdapterCost] = []
    for shape in plan.shapes:
        with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
            folder = Path(name)
            _say(f"{shape}: writing models")
            base = write_base(folder / "base", shape)
            for case in _cases(shape, base, folder, plan):
                _print_case(case)
                cases.append(case)
            cost = run_adapter_cost(
                shape,
                base,
                folder / "costs",
                dtype=_HEADLINE_DTYPE,
                num_rounds=plan.num_rounds,
                num_threads=plan.num_threads,
            )
            _say(
                f"{shape}, {cost.num_rows} rows: different LoRAs keep {cost.loras_over_base:.3f} of the base's "
                f"throughput; soft prompts take {cost.prompts_over_tokens:.3f} of the time of real tokens"
            )
            costs.append(cost)
        keep(Results(tuple(cases), tuple(costs)))
    return Results(tuple(cases), tuple(costs))


def _cases(shape: str, base: Path, folder: Path, plan: Plan) -> Iterator[CaseResult]:
    """Run the cases of one base, the one that compares tokens first."""
    loras = write_loras(folder / "loras", base, [plan.rank] * plan.num_loras)
    converted = convert(folder / "converted", base, loras if plan.has_all_peers else [])
    prompts = random_prompts(base, [plan.num_prompt_tokens] * max(*plan.rows, _HEADLINE_ROWS))
    compared = ("float32", _HEADLINE_ROWS, plan.num_rounds if plan.has_all_peers else 1)
    for dtype, num_rows, num_rounds in [compared, *(("bfloat16", rows, plan.num_rounds) for rows in plan.rows)]:
        _say(f"{shape}, {dtype}, {num_rows} rows")
        batch = ClosedBatch(
            base=base,
            prompts=tuple(prompts[:num_rows]),
            loras=tuple(loras[row % len(loras)] for row in range(num_rows)),
            num_new_tokens=plan.num_new_tokens,
            dtype=dtype,
            num_threads=plan.num_threads,
        )
        yield run_case(shape, batch, converted=converted, num_rounds=num_rounds, has_all_peers=plan.has_all_peers)


def _run(arguments: argparse.Namespace) -> None:
    plan = Plan(
        shapes=tuple(arguments.shape or ((_HEADLINE_SHAPE,) if arguments.quick else SHAPES)),
        rows=tuple(arguments.rows or ((_HEADLINE_ROWS,) if arguments.quick else (1, 8, 16, 32, 64))),
        num_rounds=arguments.rounds,
        num_threads=arguments.threads or torch.get_num_threads(),
        has_all_peers=not arguments.quick,
    )
    results = run_plan(plan, keep=lambda so_far: _write(so_far, plan, arguments))
    for key, figure in results.headline().items():
        _say(f"{key}: {figure:.3f}")


def _write(results: Results, plan: Plan, arguments: argparse.Namespace) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(_figures(results, plan), indent=2) + "\n")
    if arguments.plot:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        (arguments.plot / "engine.md").write_text(markdown(results.cases, results.adapter_costs))
        plot(results.cases, arguments.plot / "engine.png")


def _figures(results: Results, plan: Plan) -> dict[str, object]:
    return {
        **results.headline(),
        "cases": [case.figures() for case in results.cases],
        "adapter_costs": [cost.figures() for cost in results.adapter_costs],
        "num_rounds": plan.num_rounds,
        **describe_machine(plan.num_threads),
    }


def _print_case(case: CaseResult) -> None:
    for name, side in case.measured.items():
        ratio = f", ours is {case.ratios[name]:.2f} of it" if name in case.ratios else ""
        agreed = f", {case.agreement[name]:.1%} of the tokens ours" if name in case.agreement else ""
        _say(f"  {name}: {side.tokens_per_s:.0f} tokens/s{ratio}{agreed}")
    if line := case.roofline:
        _say(
            f"  our decode step {line.step_s * 1e3:.2f} ms, roofline {line.least_s * 1e3:.2f} ms at "
            f"{line.bytes_per_s / 1e9:.1f} GB/s: {line.step_over_roofline:.2f} of it"
        )


def _say(line: str) -> None:
    print(line, flush=True)
