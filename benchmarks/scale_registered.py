"""Scale, part one: throughput with few adapters and with thousands to choose from, under Zipf's law.

A batch is always full: the next request comes whenever one ends. One engine per number of adapters, each in its own
steady state; every round asks all of them for the same prompts and lengths, in turn.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency import Summary, summarize
from benchmarks.many_loras import write_many_loras
from benchmarks.ours import OurEngine
from benchmarks.replay import replay_in_flight
from benchmarks.scale_case import ScaleCase
from benchmarks.trace import make_trace
from server.engine.base import ResolvedAdapter


@dataclass(frozen=True, slots=True)
class RegisteredPlan:
    """What is run.

    Attributes:
        counts: Numbers of adapters, smallest first.
        num_slots: Adapters resident on the device at once.
        num_requests: Requests of a round.
        num_rounds: Rounds, after one that is not counted.
        zipf_exponent: How unevenly adapters are asked for.
    """

    counts: tuple[int, ...] = (5, 100, 2000)
    num_slots: int = 32
    num_requests: int = 256
    num_rounds: int = 3
    zipf_exponent: float = 1.0


@dataclass(frozen=True, slots=True)
class RegisteredResult:
    """Throughput by number of adapters.

    Attributes:
        plan: What was run.
        rounds: By number of adapters, a summary per round.
        num_loads: By number of adapters, loads into a slot over all rounds, the first one included.
    """

    plan: RegisteredPlan
    rounds: dict[int, list[Summary]]
    num_loads: dict[int, int]

    def headline(self) -> dict[str, float]:
        """Return the throughput with most adapters over that with fewest, the median of the rounds."""
        fewest, most = self.plan.counts[0], self.plan.counts[-1]
        return {f"throughput_{most}_over_{fewest}_adapters": self.share(most)}

    def share(self, count: int) -> float:
        """Return the throughput with ``count`` adapters over that with fewest, the median of the rounds."""
        fewest = self.rounds[self.plan.counts[0]]
        pairs = zip(self.rounds[count], fewest, strict=True)
        return statistics.median(many.tokens_per_s / few.tokens_per_s for many, few in pairs)

    def plot(self, picture: Path) -> None:
        """Write a PNG of throughput over the number of adapters."""
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4))
        for count, summaries in self.rounds.items():
            axes.plot([count] * len(summaries), [one.tokens_per_s for one in summaries], ".", color="tab:grey")
        medians = [statistics.median(one.tokens_per_s for one in self.rounds[count]) for count in self.plan.counts]
        axes.plot(self.plan.counts, medians, "o-")
        axes.set(xlabel="registered adapters", ylabel="tokens/s", xscale="log", ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        figure.tight_layout()
        figure.savefig(picture, dpi=100)
        pyplot.close(figure)


def run_registered(case: ScaleCase, plan: RegisteredPlan) -> RegisteredResult:
    """Run every round."""
    adapters = write_many_loras(case.folder, case.base, max(plan.counts))
    rounds: dict[int, list[Summary]] = {count: [] for count in plan.counts}
    with ExitStack() as stack:
        config = case.engine_config(num_slots=plan.num_slots)
        engines = {count: stack.enter_context(OurEngine(config)) for count in plan.counts}
        for turn in range(plan.num_rounds + 1):
            for count, engine in engines.items():
                summary = _round(case, plan, engine, adapters[:count], turn)
                if turn:
                    rounds[count].append(summary)
                    print(f"{count} adapters: {summary.tokens_per_s:.0f} tokens/s", flush=True)
        num_loads = {count: engine.stats().num_adapter_loads for count, engine in engines.items()}
    return RegisteredResult(plan, rounds, num_loads)


def _round(
    case: ScaleCase, plan: RegisteredPlan, engine: OurEngine, adapters: Sequence[ResolvedAdapter], turn: int
) -> Summary:
    shape = case.trace_shape(len(adapters), plan.zipf_exponent)
    trace = make_trace(shape, rate=1.0, num_requests=plan.num_requests, seed=case.seed + turn)
    num_in_flight = 2 * case.max_num_seqs
    return summarize(engine.run(lambda native: replay_in_flight(native, trace, adapters, num_in_flight=num_in_flight)))
