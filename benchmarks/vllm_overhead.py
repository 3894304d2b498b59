"""``python -m benchmarks vllm``: what Medley costs over vLLM's own server, and what a soft prompt costs.

Both servers run on the same base and LoRAs with the same engine arguments, and are offered the same requests by vLLM's
own client, in turn, round after round. First as many requests at a time as there is room for, which gives throughput;
then at half that rate, which gives latency where nothing queues; then without LoRAs, where the engine has the least to
do and the servers weigh most. Last, Medley alone: requests with a soft prompt beside requests with as many more real
tokens.

Needs the environment of ``make install-vllm``.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.vllm_client import Load, Run, bench_serve

MEDLEY, VLLM = "medley", "vllm"
SATURATED, HALF, BASE_ALONE = "saturated", "half", "base_alone"
SOFT_PROMPT, REAL_TOKENS = "soft_prompt", "real_tokens"
# On the CPU vLLM copies a LoRA's weights for every token, so higher ranks would leave no room for anything else.
_RANKS = (8, 8, 8, 8)
_PROMPT = "prompt"
_MAX_CONCURRENCY = 16
# Just short of a block of vLLM's on the CPU: a whole block of them would be computed once and then come from its cache.
_NUM_VIRTUAL_TOKENS = 120

Runs = Mapping[str, list[Run]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run with one base.

    Attributes:
        num_requests: Requests a run.
        num_rounds: Rounds.
        num_in: Tokens in.
        num_out: Tokens out.
        seed: Seed of models and requests.
    """

    num_requests: int
    num_rounds: int = 5
    num_in: int = 128
    num_out: int = 64
    seed: int = 0


PLANS: Mapping[str, Plan] = {
    "tiny": Plan(num_requests=256),
    "smollm2-135m": Plan(num_requests=48, num_in=32, num_out=32),
}
QUICK: Mapping[str, Plan] = {
    "tiny": Plan(num_requests=48, num_rounds=2),
    "smollm2-135m": Plan(num_requests=16, num_rounds=2, num_in=32, num_out=16),
}


@dataclass(frozen=True, slots=True)
class Overhead:
    """What was measured with one base.

    Attributes:
        plan: What was run.
        loads: Runs by load and server, one of each server a round.
        soft_prompt: Runs of Medley with a soft prompt and with as many real tokens.
    """

    plan: Plan
    loads: Mapping[str, Runs]
    soft_prompt: Runs

    def headline(self) -> dict[str, float]:
        """Return medians over the rounds of the ratios within a round."""
        ratios = {
            "soft_prompt_throughput_over_real_tokens": _ratio(
                self.soft_prompt, SOFT_PROMPT, REAL_TOKENS, lambda run: run.requests_per_s
            ),
            "soft_prompt_e2e_p50_over_real_tokens": _ratio(
                self.soft_prompt, SOFT_PROMPT, REAL_TOKENS, lambda run: run.e2e_p50_ms
            ),
        }
        for load, runs in self.loads.items():
            ratios[f"throughput_over_vllm_{load}"] = _ratio(runs, MEDLEY, VLLM, lambda run: run.tokens_per_s)
            ratios[f"ttft_p50_over_vllm_{load}"] = _ratio(runs, MEDLEY, VLLM, lambda run: run.ttft_p50_ms)
            ratios[f"itl_p50_over_vllm_{load}"] = _ratio(runs, MEDLEY, VLLM, lambda run: run.itl_p50_ms)
        return ratios


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``vllm`` to the benchmarks' command line."""
    parser = commands.add_parser("vllm", help="medley serve beside vllm serve, and what a soft prompt costs")
    parser.add_argument("--shape", choices=list(PLANS), action="append", help="default: all, one after the other")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests")
    parser.add_argument("--rounds", type=int, help="rounds of each load")
    parser.add_argument("--requests", type=int, help="requests of each run")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write vllm-SHAPE.png of each shape into this folder")
    parser.set_defaults(run=_run)


def run_overhead(shape: str, plan: Plan, dtype: str) -> Overhead:
    """Start both servers on one base and measure, printing each run as it ends."""
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name, _servers(Path(name), shape, plan, dtype) as urls:
        return _Measuring(Path(name) / shape, urls, plan).overhead()


@contextmanager
def _servers(scratch: Path, shape: str, plan: Plan, dtype: str) -> Iterator[Mapping[str, str]]:
    from benchmarks.vllm_models import write_base, write_loras, write_soft_prompt
    from benchmarks.vllm_servers import Served, medley_server, vllm_server

    base = write_base(scratch / shape, shape, seed=plan.seed)
    served = Served(
        base=base,
        loras=write_loras(scratch / "loras", base, _RANKS, seed=plan.seed),
        soft_prompts={_PROMPT: write_soft_prompt(scratch / _PROMPT, base, _NUM_VIRTUAL_TOKENS, seed=plan.seed)},
        scratch=scratch,
        dtype=dtype,
        max_num_seqs=_MAX_CONCURRENCY,
        max_model_len=1024,
        max_lora_rank=max(_RANKS),
        max_virtual_tokens=_NUM_VIRTUAL_TOKENS,
    )
    with medley_server(served) as medley, vllm_server(served) as vllm:
        yield {MEDLEY: medley, VLLM: vllm}


class _Measuring:
    """One base's runs, from the first to the last."""

    def __init__(self, base: Path, urls: Mapping[str, str], plan: Plan) -> None:
        self._base, self._urls, self._plan = base, urls, plan
        self._load = Load(
            models=(base.name, *(f"lora-{index}" for index in range(len(_RANKS)))),
            num_requests=plan.num_requests,
            rate=float("inf"),
            max_concurrency=_MAX_CONCURRENCY,
            num_in=plan.num_in,
            num_out=plan.num_out,
            seed=plan.seed,
        )

    def overhead(self) -> Overhead:
        """Run everything."""
        saturated = self._both(SATURATED, self._load)
        rate = statistics.median(run.requests_per_s for run in saturated[VLLM]) / 2
        half = replace(self._load, rate=rate, num_requests=max(_MAX_CONCURRENCY, self._load.num_requests // 2))
        alone = replace(self._load, models=(self._base.name,))
        others = {HALF: half, BASE_ALONE: alone}
        loads = {SATURATED: saturated, **{name: self._both(name, load) for name, load in others.items()}}
        return Overhead(self._plan, loads, self._soft_prompt())

    def _both(self, name: str, load: Load) -> Runs:
        return self._rounds(name, {server: (server, load) for server in self._urls})

    def _soft_prompt(self) -> Runs:
        """Measure a soft prompt beside as many real tokens, with short answers: it is the prompt that costs."""
        real = replace(self._load, models=(self._base.name,), num_prefix=_NUM_VIRTUAL_TOKENS, num_in=32, num_out=8)
        soft = replace(real, models=(_PROMPT,), num_prefix=0)
        return self._rounds("soft prompt", {SOFT_PROMPT: (MEDLEY, soft), REAL_TOKENS: (MEDLEY, real)})

    def _rounds(self, title: str, sides: Mapping[str, tuple[str, Load]]) -> Runs:
        """Run every side in turn; a first run of each, not counted, warms it and brings up its adapters."""
        for server, load in sides.values():
            warm = replace(load, num_requests=2 * _MAX_CONCURRENCY, rate=float("inf"), seed=load.seed + 1000)
            bench_serve(self._urls[server], self._base, warm)
        runs: dict[str, list[Run]] = {side: [] for side in sides}
        for turn in range(self._plan.num_rounds):
            # Who goes first changes from round to round.
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                server, load = sides[side]
                # Other tokens in each round: none of them is in a cache.
                run = bench_serve(self._urls[server], self._base, replace(load, seed=load.seed + turn))
                if run.num_failed:
                    raise RuntimeError(f"{run.num_failed} requests to {server} failed")
                runs[side].append(run)
                _say(f"{self._base.name}, {title}, {side}: {_line(run)}")
        return runs


def _ratio(runs: Runs, over: str, under: str, figure: Callable[[Run], float]) -> float:
    return statistics.median(
        figure(ours) / figure(theirs) for ours, theirs in zip(runs[over], runs[under], strict=True)
    )


def _run(arguments: argparse.Namespace) -> None:
    # So that the servers are ended, too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    figures: dict[str, object] = {}
    for shape in arguments.shape or PLANS:
        plan = (QUICK if arguments.quick else PLANS)[shape]
        given = {"num_rounds": arguments.rounds, "num_requests": arguments.requests, "seed": arguments.seed}
        plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
        overhead = run_overhead(shape, plan, arguments.dtype)
        headline = overhead.headline()
        for key, figure in headline.items():
            _say(f"{shape}: {key}: {figure:.3f}")
        figures[shape] = {**headline, **asdict(overhead)}
        if arguments.plot:
            from benchmarks.vllm_plot import plot

            arguments.plot.mkdir(parents=True, exist_ok=True)
            plot(overhead, arguments.plot / f"vllm-{shape}.png")
    if arguments.json:
        figures |= {"dtype": arguments.dtype, **describe_machine(0)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _line(run: Run) -> str:
    return (
        f"{run.tokens_per_s:.0f} tokens/s, p50 TTFT {run.ttft_p50_ms:.1f} ms, p50 ITL {run.itl_p50_ms:.2f} ms, "
        f"p50 e2e {run.e2e_p50_ms:.0f} ms"
    )


def _say(line: str) -> None:
    print(line, flush=True)
