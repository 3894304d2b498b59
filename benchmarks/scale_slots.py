"""Scale, part two: time to first token with twice as many adapters in use as the device has slots for.

The same Poisson trace, every adapter asked for alike, goes in turn to three engines: one with a slot for each adapter,
one with half as many slots and the rest in host memory, and one that has to read files whenever a slot changes hands.
"""

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency import Summary, summarize
from benchmarks.many_loras import write_many_loras
from benchmarks.ours import OurEngine
from benchmarks.replay import replay, replay_in_flight
from benchmarks.scale_case import ScaleCase
from benchmarks.trace import make_trace

RESIDENT, HALF, FILES = "resident", "half_the_slots", "half_the_slots_from_files"


@dataclass(frozen=True, slots=True)
class SlotsPlan:
    """What is run.

    Attributes:
        num_adapters: Adapters in use.
        num_requests: Requests of a round.
        num_rounds: Rounds, after one that is not counted.
        load: Offered load, as a share of the throughput with all adapters resident and a batch always full.
    """

    num_adapters: int = 32
    num_requests: int = 256
    num_rounds: int = 3
    load: float = 0.6


@dataclass(frozen=True, slots=True)
class SlotsResult:
    """Times to first token by engine.

    Attributes:
        plan: What was run.
        rate: Requests per second.
        rounds: By engine, a summary per round.
        ttft_ms: By engine, every request's time to first token.
    """

    plan: SlotsPlan
    rate: float
    rounds: dict[str, list[Summary]]
    ttft_ms: dict[str, list[float]]

    def headline(self) -> dict[str, float]:
        """Return the median times to first token over the resident case, the median of the rounds."""
        return {f"ttft_{side}_over_{RESIDENT}": self._over_resident(side) for side in (HALF, FILES)}

    def plot(self, picture: Path) -> None:
        """Write a PNG of the distributions."""
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4))
        for side, values in self.ttft_ms.items():
            axes.plot(np.sort(values), np.arange(1, len(values) + 1) / len(values), label=side)
        axes.set(xlabel="TTFT, ms", ylabel="share of requests", xlim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(picture, dpi=100)
        pyplot.close(figure)

    def _over_resident(self, side: str) -> float:
        pairs = zip(self.rounds[side], self.rounds[RESIDENT], strict=True)
        return statistics.median(half.p50_ms("ttft") / all_.p50_ms("ttft") for half, all_ in pairs)


def run_slots(case: ScaleCase, plan: SlotsPlan) -> SlotsResult:
    """Run every round."""
    adapters = write_many_loras(case.folder, case.base, plan.num_adapters)
    num_half = plan.num_adapters // 2
    configs = {
        RESIDENT: case.engine_config(num_slots=plan.num_adapters),
        HALF: case.engine_config(num_slots=num_half),
        FILES: case.engine_config(num_slots=num_half, max_host_adapter_bytes=0),
    }
    shape = case.trace_shape(plan.num_adapters, 0.0)
    rounds: dict[str, list[Summary]] = {side: [] for side in configs}
    ttft_ms: dict[str, list[float]] = {side: [] for side in configs}
    with ExitStack() as stack:
        engines = {side: stack.enter_context(OurEngine(config)) for side, config in configs.items()}
        first = make_trace(shape, rate=1.0, num_requests=plan.num_requests, seed=case.seed)
        in_flight = 2 * case.max_num_seqs
        for engine in engines.values():
            engine.run(lambda native: replay_in_flight(native, first, adapters, num_in_flight=in_flight))
        full = engines[RESIDENT].run(lambda native: replay_in_flight(native, first, adapters, num_in_flight=in_flight))
        rate = plan.load * plan.num_requests / summarize(full).duration_s
        for turn in range(1, plan.num_rounds + 1):
            trace = make_trace(shape, rate=rate, num_requests=plan.num_requests, seed=case.seed + turn)
            for side, engine in engines.items():
                records = engine.run(lambda native, trace=trace: replay(native, trace, adapters))
                rounds[side].append(summarize(records))
                ttft_ms[side] += [(one.piece_times_s[0] - one.sent_s) * 1e3 for one in records]
                print(f"{side}: median TTFT {rounds[side][-1].p50_ms('ttft'):.0f} ms", flush=True)
    return SlotsResult(plan, rate, rounds, ttft_ms)
