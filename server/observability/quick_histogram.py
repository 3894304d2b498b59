"""A Prometheus histogram for what is observed once a token; the library's takes a lock and a dozen calls each time."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class QuickHistogram(Collector):
    """A histogram without labels. One thread observes; any may collect.

    Args:
        name: The metric's name.
        text: What it is.
        bounds: Upper bounds of the buckets, ascending, the infinite one left out.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """Start at nothing."""
        self._name, self._text = name, text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound it does not exceed."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        """Return the histogram as it is now."""
        bounds = (*map(str, self._bounds), "+Inf")
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
