"""Whether a figure that was sampled over a long run stayed flat, by one stated rule. Knows no servers and no files.

The first third of a run is for caches to fill and pools to grow. Over the rest the slope is the median of the slopes
between all pairs of samples, which a few outliers do not move; times the length of the rest it is what the figure has
grown by. It is flat if that is no more than a share of the figure's median, or than an amount that says nothing.
Falling is flat.

Source:
    Sen, Estimates of the regression coefficient based on Kendall's tau (1968), J. Am. Stat. Assoc. 63.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SETTLING_SHARE = 1 / 3
_LEAST_NUM_SAMPLES = 6
# All pairs of so many are half a million.
_MOST_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Limit:
    """How much a figure may grow over the last two thirds of a run.

    Attributes:
        share: Of its median there.
        amount: In its own unit; the larger of both counts.
    """

    share: float
    amount: float


@dataclass(frozen=True, slots=True)
class Trend:
    """What became of a figure.

    Attributes:
        title: What it is.
        unit: Of its values.
        num_samples: Samples in the last two thirds.
        median: Their median; 0 without any.
        growth: What it has grown by there.
        most_growth: What it may have grown by.
        is_flat: Whether it has not; never so with too few samples to say.
    """

    title: str
    unit: str
    num_samples: int
    median: float
    growth: float
    most_growth: float
    is_flat: bool


def trend(title: str, unit: str, times_s: Sequence[float], values: Sequence[float], limit: Limit) -> Trend:
    """Say whether a figure stayed flat.

    Args:
        title: What it is.
        unit: Of its values.
        times_s: When it was sampled, in order.
        values: What it was, one for each time.
        limit: How much it may grow.
    """
    times, sampled = np.asarray(times_s, dtype=float), np.asarray(values, dtype=float)
    if times.size:
        settled = times >= times[0] + _SETTLING_SHARE * (times[-1] - times[0])
        times, sampled = times[settled], sampled[settled]
    median = float(np.median(sampled)) if sampled.size else 0.0
    most_growth = max(limit.share * median, limit.amount)
    if times.size < _LEAST_NUM_SAMPLES:
        return Trend(title, unit, times.size, median, 0.0, most_growth, is_flat=False)
    growth = _slope(times, sampled) * float(times[-1] - times[0])
    return Trend(title, unit, times.size, median, growth, most_growth, is_flat=growth <= most_growth)


def _slope(times: np.ndarray, values: np.ndarray) -> float:
    every = -(-times.size // _MOST_SAMPLES)
    times, values = times[::every], values[::every]
    earlier, later = np.triu_indices(times.size, k=1)
    gaps = times[later] - times[earlier]
    rises = values[later] - values[earlier]
    return float(np.median(rises[gaps > 0] / gaps[gaps > 0]))
