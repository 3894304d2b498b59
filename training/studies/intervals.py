"""Bootstrap intervals over examples and seeds. It knows arrays of scores only.

Legend: S seeds, E examples, R resamples.

Source: percentile bootstrap, Efron 1979, Annals of Statistics 7(1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_NUM_RESAMPLES, _SEED = 1000, 13


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether zero is outside: of a difference, whether it is one beyond chance."""
        return self.low > 0.0 or self.high < 0.0


def seeds_interval(values_SE: ArrayLike) -> Interval:
    """Return the mean over seeds and the examples all of them answered, with its interval; both are drawn anew.

    Raises:
        ValueError: no values, or no table of them.
    """
    values_SE = np.asarray(values_SE, dtype=np.float64)
    if values_SE.ndim != 2 or not values_SE.size:
        raise ValueError("values are a table of one row a seed and one column an example")
    rng = np.random.default_rng(_SEED)
    weights_RS, weights_RE = (rng.multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES) / n for n in values_SE.shape)
    low, high = np.percentile(((weights_RS @ values_SE) * weights_RE).sum(axis=1), [2.5, 97.5])
    return Interval(float(values_SE.mean()), float(low), float(high))
