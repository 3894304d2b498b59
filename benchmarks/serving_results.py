"""What the serving benchmark makes of its runs. Knows no servers."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class SideRun:
    """One run of one side.

    Attributes:
        side: ``engine``, a protocol, or a protocol with ``-stream``.
        turn: Its round, from 0.
        seconds: From the first request to the last answer.
        num_tokens: Tokens of all answers.
        latencies_ms: From each request to the end of its answer.
        client_cpu_s: Processor time of the process that asks, which for the engine alone is that of the engine, too.
    """

    side: str
    turn: int
    seconds: float
    num_tokens: int
    latencies_ms: Sequence[float] = field(repr=False)
    client_cpu_s: float

    @property
    def num_requests(self) -> int:
        """Answers."""
        return len(self.latencies_ms)

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.num_requests / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers a second."""
        return self.num_tokens / self.seconds

    def line(self) -> str:
        """Return the run in words."""
        return (
            f"{self.side}: {self.num_requests} answers, {self.tokens_per_s:.0f} tokens/s, "
            f"p50 {np.percentile(self.latencies_ms, 50):.1f} ms, p99 {np.percentile(self.latencies_ms, 99):.1f} ms"
        )


@dataclass(frozen=True, slots=True)
class ServingResult:
    """A whole benchmark.

    Attributes:
        flat_out: Runs with all users waiting.
        timed: Runs at half load.
        rate: Requests per second of those.
    """

    flat_out: Sequence[SideRun]
    timed: Sequence[SideRun]
    rate: float

    def headline(self) -> dict[str, float]:
        """Return each side's throughput over the engine's, and what its latencies have more; medians of rounds."""
        figures: dict[str, float] = {}
        for side in dict.fromkeys(run.side for run in self.flat_out if run.side != ENGINE):
            name = side.replace("-", "_")
            figures[f"{name}_over_engine"] = statistics.median(
                ours.tokens_per_s / engine.tokens_per_s for ours, engine in _pairs(self.flat_out, side)
            )
            for percent in (50, 99):
                figures[f"{name}_p{percent}_added_ms"] = statistics.median(
                    float(np.percentile(ours.latencies_ms, percent) - np.percentile(engine.latencies_ms, percent))
                    for ours, engine in _pairs(self.timed, side)
                )
        return figures

    def as_json(self, plan: object) -> dict[str, object]:
        """Return the figures of every run, without single latencies."""
        return {
            **self.headline(),
            "plan": asdict(plan),  # type: ignore[call-overload]
            "rate": self.rate,
            "flat_out": [_figures(run) for run in self.flat_out],
            "timed": [_figures(run) for run in self.timed],
        }


def _pairs(runs: Sequence[SideRun], side: str) -> list[tuple[SideRun, SideRun]]:
    """Return a side's runs, each with the engine's of the same round."""
    engine = {run.turn: run for run in runs if run.side == ENGINE}
    return [(run, engine[run.turn]) for run in runs if run.side == side]


def _figures(run: SideRun) -> dict[str, object]:
    return {
        "side": run.side,
        "turn": run.turn,
        "num_requests": run.num_requests,
        "tokens_per_s": run.tokens_per_s,
        "p50_ms": float(np.percentile(run.latencies_ms, 50)),
        "p99_ms": float(np.percentile(run.latencies_ms, 99)),
        "client_cpu_s": run.client_cpu_s,
    }
