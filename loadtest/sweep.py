"""Finds the knee: the highest rate at which a server still keeps its objectives. Knows no clients and no files.

Rates go up by a factor until a run is no longer good, then the gap between the last good and the first bad one is
halved, on a logarithmic scale, a few times.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.report import Report

_MAX_STEPS = 24
# A start at more than so many times the capacity is no start.
_MOST_TOO_FAST = 100


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """How to sweep.

    Attributes:
        start_rate: First rate, per second.
        factor: From one rate to the next, above 1.
        num_bisections: How often the last gap is halved.
        min_good_share: Share of requests that has to keep every objective for a rate to be good.
    """

    start_rate: float
    factor: float = 1.5
    num_bisections: int = 3
    min_good_share: float = 0.95

    def __post_init__(self) -> None:
        """Refuse what would not end.

        Raises:
            ValueError: If a figure is out of its range.
        """
        if not 0 < self.start_rate < math.inf or not 1.05 <= self.factor <= 10:
            raise ValueError("a sweep needs a rate above 0 and a factor between 1.05 and 10")
        if not 0 <= self.num_bisections <= 10 or not 0 < self.min_good_share <= 1:
            raise ValueError("a sweep takes 0 to 10 bisections and a share above 0, up to 1")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep.

    Attributes:
        rate: Arrivals per second that were asked for.
        good_share: Share of all requests that kept every objective.
        goodput_per_s: Of the run.
        requests_per_s: Completed, of the run.
        latencies_ms: Percentiles by latency and name, as ``e2e_p99``; without those that could not be measured.
        is_good: Whether the rate was kept up with.
    """

    rate: float
    good_share: float
    goodput_per_s: float
    requests_per_s: float
    latencies_ms: Mapping[str, float]
    is_good: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """A whole sweep.

    Attributes:
        points: All runs, by rate.
        knee: The good run with the highest rate; None if none was good.
        first_bad: The bad run with the lowest rate above the knee; None if the sweep ended before one.
    """

    points: tuple[Point, ...]
    knee: Point | None
    first_bad: Point | None

    def sentence(self, min_good_share: float, objectives: Mapping[str, float]) -> str:
        """Tell the knee."""
        asked = ", ".join(f"{tag} ≤ {bound:g} ms" for tag, bound in objectives.items())
        if self.knee is None:
            lowest = self.points[0]
            return (
                f"No knee: even at {lowest.rate:.3g} requests/s only {lowest.good_share:.1%} of requests keep {asked}, "
                f"{min_good_share:.0%} should."
            )
        kept = f"at {self.knee.rate:.3g} requests/s {self.knee.good_share:.1%} of requests keep {asked}"
        good = f"(goodput {self.knee.goodput_per_s:.3g}/s)"
        if self.first_bad is None:
            return f"No knee up to the highest rate tried: {kept} {good}."
        return f"The knee: {kept} {good}; at {self.first_bad.rate:.3g} only {self.first_bad.good_share:.1%} do."


def find_knee(config: SweepConfig, measure: Callable[[float], Report]) -> Sweep:
    """Find the knee.

    Args:
        config: How to sweep.
        measure: Runs the scenario at a rate and sums it up.
    """
    points: list[Point] = []

    def take(rate: float) -> bool:
        points.append(point_of(rate, measure(rate), config.min_good_share))
        return points[-1].is_good

    rate = config.start_rate
    is_good = take(rate)
    step = config.factor if is_good else 1 / config.factor
    last = rate
    for _ in range(_MAX_STEPS):
        if rate * step * _MOST_TOO_FAST < config.start_rate:
            return _summed_up(points)
        last, rate = rate, rate * step
        if take(rate) != is_good:
            break
    else:
        return _summed_up(points)
    low, high = sorted((last, rate))
    for _ in range(config.num_bisections):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if take(middle) else (low, middle)
    return _summed_up(points)


def point_of(rate: float, report: Report, min_good_share: float) -> Point:
    """Return what a run says about a rate."""
    num_requests = sum(report.total.outcomes.values())
    rates = report.total.rates
    good_share = rates["goodput_per_s"] * report.duration_s / num_requests
    latencies = {
        f"{tag}_{name}": getattr(sample, name)
        for tag, sample in report.total.latencies.items()
        if sample is not None
        for name in ("p50", "p99")
    }
    # Shares come from products of floats.
    is_good = good_share >= min_good_share - 1e-9
    return Point(rate, good_share, rates["goodput_per_s"], rates["requests_per_s"], latencies, is_good)


def _summed_up(points: list[Point]) -> Sweep:
    by_rate = tuple(sorted(points, key=lambda point: point.rate))
    # Chance may make a rate good that is above a bad one: the knee is below the lowest bad rate.
    first_bad = next((point for point in by_rate if not point.is_good), None)
    good = [point for point in by_rate if first_bad is None or point.rate < first_bad.rate]
    return Sweep(by_rate, good[-1] if good else None, first_bad)
