"""``python -m benchmarks open-loop``: one Poisson trace of mixed adapters and lengths, on our engine and on PEFT.

Each side is offered the very same requests. First all at once, in turn, which gives its throughput with work always at
hand. Then, as time passes, at one rate after the other, to find the largest it keeps up with. Last, ours at the rate
PEFT sustains, which sets their latencies side by side.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adapters.base_spec import read_base_spec
from benchmarks.latency import Summary, summarize
from benchmarks.machine import describe_machine
from benchmarks.models import SHAPES, write_base, write_loras
from benchmarks.open_loop_plot import plot
from benchmarks.open_loop_results import OURS, PEFT, Results, TimedRun, sustained
from benchmarks.ours import OurEngine
from benchmarks.replay import replay
from benchmarks.static_server import StaticServer
from benchmarks.trace import TraceRequest, TraceShape, all_at_once, make_trace
from loadtest.records import RequestRecord
from server.engine.native.engine import NativeEngineConfig

# From one rate of the ladder to the next, and the most rates tried.
_RUNG, _MAX_RUNGS = 1.1, 12
# A side keeps up if its last answer comes this soon after the last arrival, as a share of the time of all arrivals.
_MAX_BACKLOG = 0.15
_RANKS = (8, 16, 32, 64)

Serve = Callable[[Sequence[TraceRequest]], list[RequestRecord]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        shape: The base.
        dtype: Dtype of both sides.
        seconds: Length of a trace that is served as time passes.
        rate: Requests per second of that trace, or None to look for the largest rate of each side.
        num_at_once: Requests offered all at once.
        num_rounds: Rounds of those.
        num_threads: CPU threads of both sides.
        num_adapters: LoRAs on q and v, ranks 8, 16, 32 and 64 by turns.
        max_num_seqs: Rows of our batch.
        peft_batches: Batch sizes tried for PEFT; the one of the best throughput stays.
        seed: Seed of models and traces.
    """

    shape: str = "flan-t5-small"
    dtype: str = "bfloat16"
    seconds: float = 120.0
    rate: float | None = None
    num_at_once: int = 128
    num_rounds: int = 3
    num_threads: int = 0
    num_adapters: int = 32
    max_num_seqs: int = 32
    peft_batches: tuple[int, ...] = (8, 16, 32)
    seed: int = 0


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``open-loop`` to the benchmarks' command line."""
    plan = Plan()
    parser = commands.add_parser("open-loop", help="a Poisson trace: the native engine beside PEFT in static batches")
    parser.add_argument("--shape", choices=SHAPES, default=plan.shape)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=plan.dtype)
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="length of a timed trace (default 120)")
    parser.add_argument("--rate", default="auto", help="requests per second; auto finds what each side sustains")
    parser.add_argument("--requests", type=int, default=plan.num_at_once, help="requests all at once (default 128)")
    parser.add_argument("--rounds", type=int, default=plan.num_rounds, help="rounds of those (default 3)")
    parser.add_argument("--adapters", type=int, default=plan.num_adapters, help="LoRAs (default 32)")
    parser.add_argument("--rows", type=int, default=plan.max_num_seqs, help="rows of our batch (default 32)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both sides; 0 is torch's own choice")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write open-loop.png into this folder")
    parser.set_defaults(run=_run)


def run_plan(plan: Plan) -> Results:
    """Run both sides, printing each run as it ends."""
    torch.set_num_threads(plan.num_threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        base = write_base(Path(name) / "base", plan.shape, seed=plan.seed)
        ranks = [_RANKS[index % len(_RANKS)] for index in range(plan.num_adapters)]
        loras = write_loras(Path(name) / "loras", base, ranks, seed=plan.seed)
        trace_shape = TraceShape(num_adapters=plan.num_adapters, vocab_size=read_base_spec(base).vocab_size)
        peft = StaticServer(base, loras, plan.dtype)
        with OurEngine(_engine_config(base, plan, trace_shape)) as engine:
            return _Run(
                plan,
                trace_shape,
                ours=lambda trace: engine.run(lambda native: replay(native, trace, loras)),
                peft=lambda trace, max_batch: peft.serve(trace, max_batch=max_batch),
            ).results()


class _Run:
    """One run of a plan, from the first round to the last rate."""

    def __init__(
        self,
        plan: Plan,
        shape: TraceShape,
        *,
        ours: Serve,
        peft: Callable[[Sequence[TraceRequest], int], list[RequestRecord]],
    ) -> None:
        self._plan, self._shape, self._ours, self._peft = plan, shape, ours, peft

    def results(self) -> Results:
        """Run everything."""
        peft_batch = self._best_peft_batch()
        sides: dict[str, Serve] = {OURS: self._ours, PEFT: lambda trace: self._peft(trace, peft_batch)}
        at_once: dict[str, list[Summary]] = {side: [] for side in sides}
        for turn in range(self._plan.num_rounds):
            trace = self._at_once(turn)
            for side, serve in sides.items():
                at_once[side].append(summarize(serve(trace)))
                _say(f"{side}, all at once: {_line(at_once[side][-1])}")
        ladder: dict[str, list[TimedRun]] = {}
        if self._plan.rate is None:
            ladder = {side: self._ladder(side, serve, at_once[side]) for side, serve in sides.items()}
            theirs = sustained(ladder[PEFT]) or ladder[PEFT][-1]
        else:
            theirs = self._timed(PEFT, sides[PEFT], self._plan.rate)
        same_rate = {OURS: self._timed(OURS, self._ours, theirs.rate), PEFT: theirs}
        return Results(peft_batch, at_once, ladder, same_rate)

    def _best_peft_batch(self) -> int:
        """Try PEFT's batch sizes; the first pass of both sides, not counted, lays out their memory."""
        trace = self._at_once(self._plan.num_rounds)
        self._ours(trace)
        self._peft(trace[: max(self._plan.peft_batches)], max(self._plan.peft_batches))
        speeds = {size: summarize(self._peft(trace, size)).tokens_per_s for size in self._plan.peft_batches}
        _say(f"{PEFT}, tokens/s by batch size: {', '.join(f'{size}: {speed:.0f}' for size, speed in speeds.items())}")
        return max(speeds, key=lambda size: speeds[size])

    def _at_once(self, turn: int) -> tuple[TraceRequest, ...]:
        seed = self._plan.seed + 1 + turn
        return all_at_once(make_trace(self._shape, rate=1.0, num_requests=self._plan.num_at_once, seed=seed))

    def _ladder(self, side: str, serve: Serve, at_once: Sequence[Summary]) -> list[TimedRun]:
        """Begin at the throughput with all requests at once; go up while the side keeps up, or down until it does."""
        speed = statistics.median(summary.num_requests / summary.duration_s for summary in at_once)
        runs = [self._timed(side, serve, speed)]
        step = _RUNG if runs[0].keeps_up else 1 / _RUNG
        while runs[-1].keeps_up == runs[0].keeps_up and len(runs) < _MAX_RUNGS:
            runs.append(self._timed(side, serve, runs[-1].rate * step))
        return runs

    def _timed(self, side: str, serve: Serve, rate: float) -> TimedRun:
        num_requests = max(1, round(rate * self._plan.seconds))
        trace = make_trace(self._shape, rate=rate, num_requests=num_requests, seed=self._plan.seed)
        records = serve(trace)
        summary = summarize(records)
        keeps_up = summary.backlog_s <= _MAX_BACKLOG * trace[-1].arrival_s and not summary.num_failed
        _say(f"{side}, {rate:.2f} requests/s, {'keeps up' if keeps_up else 'falls behind'}: {_line(summary)}")
        return TimedRun(rate, keeps_up, summary, tuple((one.ended_s - one.sent_s) * 1e3 for one in records))


def _engine_config(base: Path, plan: Plan, shape: TraceShape) -> NativeEngineConfig:
    """Return our engine with room for the whole trace to wait, and every adapter resident as they are in PEFT."""
    return NativeEngineConfig(
        str(base),
        device="cpu",
        dtype=plan.dtype,
        max_num_seqs=plan.max_num_seqs,
        max_num_waiting=1_000_000,
        max_model_len=shape.prompt_tokens[1],
        max_new_tokens=shape.new_tokens[1],
        max_loras=plan.num_adapters,
        max_lora_rank=max(_RANKS),
        max_soft_prompts=1,
        max_virtual_tokens=1,
        num_threads=plan.num_threads,
    )


def _run(arguments: argparse.Namespace) -> None:
    plan = Plan(
        shape=arguments.shape,
        dtype=arguments.dtype,
        seconds=arguments.seconds,
        rate=None if arguments.rate == "auto" else float(arguments.rate),
        num_at_once=arguments.requests,
        num_rounds=arguments.rounds,
        num_threads=arguments.threads,
        num_adapters=arguments.adapters,
        max_num_seqs=arguments.rows,
        seed=arguments.seed,
    )
    results = run_plan(plan)
    for key, figure in results.headline().items():
        _say(f"{key}: {figure:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(_figures(results, plan), indent=2) + "\n")
    if arguments.plot:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        plot(results, arguments.plot / "open-loop.png")


def _figures(results: Results, plan: Plan) -> dict[str, object]:
    return {
        **results.headline(),
        "plan": asdict(plan),
        **asdict(results),
        **describe_machine(torch.get_num_threads()),
    }


def _line(summary: Summary) -> str:
    failed = f", {summary.num_failed} failed" if summary.num_failed else ""
    return (
        f"{summary.tokens_per_s:.0f} tokens/s, p99 TTFT {summary.p99_ms('ttft'):.0f} ms, "
        f"p99 e2e {summary.p99_ms('e2e'):.0f} ms, done {summary.backlog_s:.1f} s after the last arrival{failed}"
    )


def _say(line: str) -> None:
    print(line, flush=True)
