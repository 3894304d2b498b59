"""A histogram of durations for those that may not import Prometheus: the engine's threads count, a scrape reads."""

import threading
import time
from dataclasses import dataclass

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_NUM_LATEST = 32


@dataclass(frozen=True, slots=True)
class TimedLoad:
    """When an adapter was brought up.

    Attributes:
        digest: Which.
        ended_s: Monotonic time.
        duration_s: How long it took.
    """

    digest: str
    ended_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class DurationCounts:
    """What was counted up to some moment.

    Attributes:
        counts: Durations in each bucket of :data:`BOUNDS_S`, and last those above all of them.
        sum_s: Of all durations.
        latest: The last few of those that told whose they were, oldest first.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    sum_s: float = 0.0
    latest: tuple[TimedLoad, ...] = ()

    def cumulative(self) -> list[tuple[str, float]]:
        """Return ``(upper bound, durations up to it)`` as Prometheus writes a histogram's buckets."""
        bounds = (*(str(bound_s) for bound_s in BOUNDS_S), "+Inf")
        totals = [float(sum(self.counts[: index + 1])) for index in range(len(self.counts))]
        return list(zip(bounds, totals, strict=True))


class Durations:
    """Counts durations. :meth:`observe` may be called from any thread.

    Attributes:
        counted: What was counted so far; replaced whole, so that reading it takes no lock.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self.counted = DurationCounts()
        self._lock = threading.Lock()

    def observe(self, duration_s: float, digest: str = "") -> None:
        """Count one duration, which has just ended, of the adapter with this digest."""
        bucket = sum(duration_s > bound_s for bound_s in BOUNDS_S)
        load = (TimedLoad(digest, time.monotonic(), duration_s),) if digest else ()
        with self._lock:
            counts = list(self.counted.counts)
            counts[bucket] += 1
            latest = (*self.counted.latest, *load)[-_NUM_LATEST:]
            self.counted = DurationCounts(tuple(counts), self.counted.sum_s + duration_s, latest)
