"""How sure a mean over examples is: percentile intervals by drawing examples again and again, with replacement.

Seeded, so that a report can be made again. Any thread may call. Knows no metrics.

Source:
    Efron 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7(1): the bootstrap and its
    percentile interval; Koehn 2004, https://aclanthology.org/W04-3250: drawing test examples, in pairs where two
    systems answered the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any] | np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How to draw.

    Attributes:
        num_resamples: How often all examples are drawn.
        level: Share of the draws inside the interval, in (0, 1).
        seed: Of the random generator.

    Raises:
        ValueError: If a value is out of range.
    """

    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 13

    def __post_init__(self) -> None:
        """Refuse what gives no interval."""
        if self.num_resamples < 1 or not 0.0 < self.level < 1.0:
            raise ValueError("a bootstrap draws once or more, and its level is between 0 and 1")


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of the examples there are, and where most draws' figures are.

    Attributes:
        value: The figure itself.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether zero is outside: of a difference, whether it is one beyond chance."""
        return self.low > 0.0 or self.high < 0.0


DEFAULT_BOOTSTRAP = Bootstrap()


def mean_interval(values_E: Array, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Interval:
    """Return the mean over E examples with its interval.

    For the difference of two systems that answered the same examples (paired), give the differences: one system's
    values minus the other's.

    Raises:
        ValueError: If there are no values.
    """
    drawn = _drawn_means(values_E, _generator(bootstrap), bootstrap)
    return _interval(float(np.mean(values_E)), drawn, bootstrap)


def mean_intervals(values_EM: Array, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> tuple[Interval, ...]:
    """Return the mean of each of M metrics over the same E examples with its interval; one draw serves all metrics.

    Raises:
        ValueError: If there are no values, or they are not a table.
    """
    values_EM = np.asarray(values_EM, dtype=np.float64)
    if values_EM.ndim != 2 or not values_EM.size:
        raise ValueError("values are a table of one row an example and one column a metric")
    drawn_RM = _drawn_means(values_EM, _generator(bootstrap), bootstrap)
    means_M = values_EM.mean(axis=0)
    return tuple(_interval(float(mean), drawn_R, bootstrap) for mean, drawn_R in zip(means_M, drawn_RM.T, strict=True))


def difference_interval(first_E: Array, second_F: Array, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Interval:
    """Return mean(first) - mean(second) with its interval where the examples are not the same ones (unpaired).

    Raises:
        ValueError: If there are no values on a side.
    """
    generator = _generator(bootstrap)
    drawn = _drawn_means(first_E, generator, bootstrap) - _drawn_means(second_F, generator, bootstrap)
    return _interval(float(np.mean(first_E) - np.mean(second_F)), drawn, bootstrap)


def seeds_interval(values_SE: Array, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Interval:
    """Return the mean over S training runs and the E examples all of them answered, with its interval.

    Runs and examples are drawn independently, so the interval holds both kinds of chance. With three runs it is still
    too narrow: there are few ways to draw three. Give differences for two methods run with the same seeds.

    Raises:
        ValueError: If there are no values, or they are not a table.
    """
    values_SE = np.asarray(values_SE, dtype=np.float64)
    if values_SE.ndim != 2 or not values_SE.size:
        raise ValueError("values are a table of one row a run and one column an example")
    generator = _generator(bootstrap)
    num_runs, num_examples = values_SE.shape
    weights_RS = _weights(num_runs, generator, bootstrap) / num_runs
    weights_RE = _weights(num_examples, generator, bootstrap) / num_examples
    drawn = ((weights_RS @ values_SE) * weights_RE).sum(axis=1)
    return _interval(float(values_SE.mean()), drawn, bootstrap)


def sums_interval(
    rows_EK: Array, figure: Callable[[Array], float], bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> Interval:
    """Return a figure of sums over the examples, as BLEU of summed counts, with its interval.

    Args:
        rows_EK: K numbers for each of E examples.
        figure: Makes the figure of their K sums.
        bootstrap: How to draw.

    Raises:
        ValueError: If there are no rows.
    """
    _require_some(rows_EK)
    sums_RK = _weights(len(rows_EK), _generator(bootstrap), bootstrap) @ rows_EK
    return _interval(figure(rows_EK.sum(axis=0)), np.array([figure(sums) for sums in sums_RK]), bootstrap)


def _generator(bootstrap: Bootstrap) -> np.random.Generator:
    return np.random.default_rng(bootstrap.seed)


def _weights(num: int, generator: np.random.Generator, bootstrap: Bootstrap) -> NDArray[np.int64]:
    """Return (R, num) counts: how often each of ``num`` things is in each of R draws of ``num``."""
    return generator.multinomial(num, np.full(num, 1.0 / num), size=bootstrap.num_resamples)


def _drawn_means(values_E: Array, generator: np.random.Generator, bootstrap: Bootstrap) -> NDArray[np.float64]:
    _require_some(values_E)
    shares_RE = _weights(len(values_E), generator, bootstrap) / len(values_E)
    return shares_RE @ np.asarray(values_E, dtype=np.float64)


def _interval(value: float, drawn: NDArray[np.float64], bootstrap: Bootstrap) -> Interval:
    tail = 50.0 * (1.0 - bootstrap.level)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))


def _require_some(values: Array) -> None:
    if not len(values):
        raise ValueError("there are no examples")
