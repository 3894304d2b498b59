"""Whether a figure is spread as it was: the two-sample Kolmogorov-Smirnov test. Knows no requests.

Source:
    Smirnov 1939, "On the estimation of the discrepancy between empirical curves of distribution for two independent
    samples", for the limit; Stephens 1970, "Use of the Kolmogorov-Smirnov, Cramér-von Mises and related statistics
    without extensive tables", for the correction that makes it good from a few samples on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A difference has to be sure and large: with thousands of requests the test sees what nobody minds.
_MAX_P_VALUE = 0.01
_MIN_STATISTIC = 0.1
_MAX_NUM_TERMS = 100
_SMALL_LAMBDA = 0.2


@dataclass(frozen=True, slots=True)
class Drift:
    """How two samples differ.

    Attributes:
        statistic: Greatest distance between their distribution functions, from 0 to 1.
        p_value: How often chance alone would make one as great.
        drifted: Whether it is beyond chance and large.
    """

    statistic: float
    p_value: float
    drifted: bool


def drift_between(earlier: Sequence[float], recent: Sequence[float]) -> Drift:
    """Compare two samples. Equal values make the p-value too large, never too small.

    Raises:
        ValueError: If one is empty.
    """
    if not earlier or not recent:
        raise ValueError("both samples need values")
    first, second = np.sort(np.asarray(earlier, dtype=float)), np.sort(np.asarray(recent, dtype=float))
    values = np.concatenate([first, second])
    share_first = np.searchsorted(first, values, side="right") / len(first)
    share_second = np.searchsorted(second, values, side="right") / len(second)
    statistic = float(np.abs(share_first - share_second).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    p_value = _tail((root + 0.12 + 0.11 / root) * statistic)
    return Drift(statistic, p_value, drifted=p_value < _MAX_P_VALUE and statistic >= _MIN_STATISTIC)


def _tail(scaled: float) -> float:
    """Return Kolmogorov's 2 Σ (-1)^(j-1) exp(-2 j² λ²)."""
    if scaled < _SMALL_LAMBDA:
        return 1.0  # the sum converges too slowly here, and is 1 to twelve digits
    total, sign = 0.0, 1.0
    for j in range(1, _MAX_NUM_TERMS):
        term = math.exp(-2.0 * (j * scaled) ** 2)
        total += sign * term
        if term < 1e-16:
            break
        sign = -sign
    return min(max(2.0 * total, 0.0), 1.0)
