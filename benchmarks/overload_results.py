"""What the overload benchmark makes of its runs: tables, headline figures and a picture. Knows no servers."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from loadtest.metrics import client_lag
from loadtest.records import Outcome, RequestRecord

_REFUSED = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One run at one load.

    Attributes:
        protocol: What was spoken.
        load: Arrivals over capacity.
        num_sent: Requests.
        goodput: Good answers a second.
        errors: How many requests ended with each code.
        e2e_ms: Latency of answers: median and 99th percentile.
        refused_ms: The same of refusals.
        lag_p99_ms: How late the client sent.
    """

    protocol: str
    load: float
    num_sent: int
    goodput: float
    errors: Mapping[str, int]
    e2e_ms: tuple[float, float]
    refused_ms: tuple[float, float]
    lag_p99_ms: float

    @classmethod
    def of(cls, protocol: str, load: float, goodput: float, records: Sequence[RequestRecord]) -> Self:
        """Sum up a run's records."""
        lag = client_lag(records)
        return cls(
            protocol,
            load,
            len(records),
            goodput,
            dict(Counter(record.error_code for record in records if record.error_code)),
            percentiles(record for record in records if record.outcome is Outcome.COMPLETED),
            percentiles(record for record in records if record.error_code in _REFUSED),
            0.0 if lag is None else lag.p99,
        )

    def line(self) -> str:
        """Return the run in words."""
        return (
            f"{self.protocol} at {self.load:g} x: {self.num_sent} sent, goodput {self.goodput:.1f}/s, "
            f"e2e p50 {self.e2e_ms[0]:.0f} p99 {self.e2e_ms[1]:.0f} ms, "
            f"refusals p50 {self.refused_ms[0]:.0f} p99 {self.refused_ms[1]:.0f} ms {dict(self.errors)}, "
            f"client late by {self.lag_p99_ms:.0f} ms (p99)"
        )


@dataclass(frozen=True, slots=True)
class FloodRun:
    """A caller alone, and beside a flood.

    Attributes:
        protocol: What was spoken.
        turn: The round, from 0.
        num_light: Requests of the caller, in each of the two runs.
        alone_ms: Its latency alone: median and 99th percentile.
        beside_ms: Its latency beside the flood.
        num_failed: Its requests that failed beside the flood.
        flood_per_s: Answers a second to the flood.
    """

    protocol: str
    turn: int
    num_light: int
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]
    num_failed: int
    flood_per_s: float

    @classmethod
    def of(
        cls,
        protocol: str,
        turn: int,
        *,
        alone: Sequence[RequestRecord],
        beside: Sequence[RequestRecord],
        flood: Sequence[RequestRecord],
        seconds: float,
    ) -> Self:
        """Sum up the records of both callers."""
        answered = [record for record in beside if record.outcome is Outcome.COMPLETED]
        num_flood = sum(record.outcome is Outcome.COMPLETED for record in flood)
        return cls(
            protocol,
            turn,
            len(beside),
            percentiles(record for record in alone if record.outcome is Outcome.COMPLETED),
            percentiles(answered),
            len(beside) - len(answered),
            num_flood / seconds,
        )

    @property
    def ratios(self) -> tuple[float, float]:
        """Latency beside the flood over that alone: of the medians, and of the 99th percentiles."""
        return self.beside_ms[0] / self.alone_ms[0], self.beside_ms[1] / self.alone_ms[1]

    def line(self) -> str:
        """Return the run in words."""
        return (
            f"{self.protocol}, round {self.turn + 1}: p50 {self.alone_ms[0]:.0f} ms alone, {self.beside_ms[0]:.0f} "
            f"beside the flood ({self.ratios[0]:.2f}), p99 {self.alone_ms[1]:.0f} and {self.beside_ms[1]:.0f} "
            f"({self.ratios[1]:.2f}), {self.num_failed} of {self.num_light} failed; flood {self.flood_per_s:.1f}/s"
        )


@dataclass(slots=True)
class OverloadResult:
    """A whole benchmark.

    Attributes:
        capacity: Answers a second with every seat taken.
        slo_ms: Bound on a good answer's latency.
        loads: Runs at shares of the capacity.
        floods: Runs of a caller alone and beside a flood.
    """

    capacity: float
    slo_ms: float
    loads: list[LoadRun] = field(default_factory=list)
    floods: list[FloodRun] = field(default_factory=list)

    def headline(self) -> dict[str, float]:
        """Return goodput at the highest load over its peak, and latencies beside the flood over alone."""
        figures: dict[str, float] = {}
        for protocol in dict.fromkeys(run.protocol for run in self.loads):
            runs = [run for run in self.loads if run.protocol == protocol]
            last = max(runs, key=lambda run: run.load)
            peak = max(run.goodput for run in runs)
            figures[f"{protocol}_goodput_over_peak"] = last.goodput / peak if peak else 0.0
        for protocol in dict.fromkeys(run.protocol for run in self.floods):
            ratios = [run.ratios for run in self.floods if run.protocol == protocol]
            for index, percent in enumerate((50, 99)):
                figures[f"{protocol}_p{percent}_beside_over_alone"] = statistics.median(each[index] for each in ratios)
        return figures

    def as_json(self, plan: object) -> dict[str, object]:
        """Return the figures of every run."""
        return {**self.headline(), "plan": asdict(plan), **asdict(self)}  # type: ignore[call-overload]


def percentiles(records: Iterable[RequestRecord]) -> tuple[float, float]:
    """Return median and 99th percentile of the time that requests took, in milliseconds; NaN if there are none."""
    took_ms = [(record.ended_s - record.sent_s) * 1e3 for record in records]
    if not took_ms:
        return float("nan"), float("nan")
    return float(np.percentile(took_ms, 50)), float(np.percentile(took_ms, 99))


def plot(result: OverloadResult, picture: Path) -> None:
    """Write a PNG of goodput over load, and of the caller's latencies alone and beside the flood."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (goods, waits) = pyplot.subplots(1, 2, figsize=(11, 4))
    for protocol in dict.fromkeys(run.protocol for run in result.loads):
        runs = [run for run in result.loads if run.protocol == protocol]
        goods.plot([run.load for run in runs], [run.goodput for run in runs], "o-", label=protocol)
    goods.axhline(result.capacity, color="grey", linestyle=":", label="capacity")
    goods.set(xlabel="arrivals over capacity", ylabel="good answers a second", xlim=(0, None), ylim=(0, None))
    names = [f"{run.protocol} {run.turn + 1}" for run in result.floods]
    for offset, (label, of) in enumerate({"alone": "alone_ms", "beside the flood": "beside_ms"}.items()):
        places = np.arange(len(names)) + 0.4 * offset
        waits.bar(places, [getattr(run, of)[1] for run in result.floods], 0.4, label=f"p99 {label}")
        waits.plot(places, [getattr(run, of)[0] for run in result.floods], "k_", label=f"p50 {label}")
    waits.margins(y=0.4)  # room for the legend
    waits.set_xticks(np.arange(len(names)) + 0.2, names)
    waits.set(xlabel="run", ylabel="e2e latency, ms", ylim=(0, None))
    for axes in (goods, waits):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
