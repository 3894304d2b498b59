"""What the open loop measures, and the figures it comes down to."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.latency import Summary

OURS, PEFT = "ours", "peft_static"


@dataclass(frozen=True, slots=True)
class TimedRun:
    """A trace served as time passed.

    Attributes:
        rate: Requests per second offered.
        keeps_up: Whether the side kept up with it.
        summary: What came of it.
        e2e_ms: End-to-end latency of every request, in order of arrival.
    """

    rate: float
    keeps_up: bool
    summary: Summary
    e2e_ms: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything measured; all by side.

    Attributes:
        peft_batch: PEFT's batch size.
        at_once: A summary per round of requests offered all at once.
        ladder: Timed runs at rate after rate, to find the largest one sustained; empty if a rate was given.
        same_rate: A timed run of each at one rate: the largest PEFT sustains, or the one given.
    """

    peft_batch: int
    at_once: dict[str, list[Summary]]
    ladder: dict[str, list[TimedRun]]
    same_rate: dict[str, TimedRun]

    def headline(self) -> dict[str, float]:
        """Return the figures, as far as their runs were made; of latencies less is better."""
        figures = {
            "saturated_ours_over_peft": statistics.median(
                ours.tokens_per_s / theirs.tokens_per_s
                for ours, theirs in zip(self.at_once[OURS], self.at_once[PEFT], strict=True)
            )
        }
        found = {side: sustained(runs) for side, runs in self.ladder.items()}
        if all(found.values()) and found:
            ours, theirs = found[OURS].summary, found[PEFT].summary
            figures["sustained_ours_over_peft"] = ours.tokens_per_s / theirs.tokens_per_s
            figures |= _latency_ratios("own_rates", ours, theirs)
        return figures | _latency_ratios("same_rate", self.same_rate[OURS].summary, self.same_rate[PEFT].summary)


def sustained(runs: Sequence[TimedRun]) -> TimedRun | None:
    """Return the run at the largest rate that was kept up with, or None."""
    return max((run for run in runs if run.keeps_up), key=lambda run: run.rate, default=None)


def _latency_ratios(where: str, ours: Summary, theirs: Summary) -> dict[str, float]:
    return {f"{tag}_p99_ours_over_peft_at_{where}": ours.p99_ms(tag) / theirs.p99_ms(tag) for tag in ("ttft", "e2e")}
