"""Two runs side by side: each figure of both, their ratio, and how sure it is. Knows no files.

Latencies: requests are drawn again with replacement, as the values of one request hang together. Rates: the run is cut
into equal windows, and windows are drawn again. Both runs are drawn independently, many times; the interval holds the
middle 95 % of the ratios.

Source:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13 (percentile intervals).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from loadtest.metrics import LATENCIES, Latency, Slo
from loadtest.records import Outcome, RequestRecord, is_measured
from loadtest.report import Report

_NUM_DRAWS = 400
_NUM_WINDOWS = 20
_ENDS = (2.5, 97.5)
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the runs.

    Attributes:
        title: How it is called.
        report: Its figures.
        records: Its requests.
        slo: Its objectives.
    """

    title: str
    report: Report
    records: Sequence[RequestRecord]
    slo: Slo

    @property
    def measured(self) -> list[RequestRecord]:
        """Its requests, without those of the warm-up."""
        return [record for record in self.records if is_measured(record)]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both runs.

    Attributes:
        title: What it is.
        unit: Of the figure.
        first: The first run's.
        second: The second run's.
        ratio: Second over first; None if the first is 0.
        low: Lower end of the ratio's 95 % interval; None if there is no ratio.
        high: Its upper end.
    """

    title: str
    unit: str
    first: float
    second: float
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        titles: How they are called.
        rows: Their figures.
        differences: What was asked differently, by its key; addresses and names left out.
        errors: How many requests of each run ended with each error code.
    """

    titles: tuple[str, str]
    rows: tuple[Row, ...]
    differences: Mapping[str, tuple[object, object]]
    errors: tuple[Mapping[str, int], Mapping[str, int]]

    def as_json(self) -> dict[str, object]:
        """Return the comparison as plain JSON values."""
        return asdict(self)


def compare(first: Side, second: Side, seed: int = 0) -> Comparison:
    """Put two runs side by side.

    Args:
        first: What the other is measured against.
        second: The other.
        seed: Of the draws.
    """
    draws = np.random.default_rng(seed)
    rows = [row for latency in LATENCIES for row in _latency_rows(latency, first, second, draws)]
    return Comparison(
        titles=(first.title, second.title),
        rows=(*rows, *_rate_rows(first, second, draws)),
        differences=_differences(first.report.config, second.report.config),
        errors=(first.report.total.errors, second.report.total.errors),
    )


def _latency_rows(latency: Latency, first: Side, second: Side, draws: np.random.Generator) -> list[Row]:
    samples = [_Sample(latency, side.measured) for side in (first, second)]
    if not all(sample.values.size for sample in samples):
        return []
    redrawn = [sample.redrawn(draws) for sample in samples]
    found = [sample.quantiles(np.ones(sample.num_requests)) for sample in samples]
    return [
        _row(
            f"{latency.title} {name}",
            latency.unit,
            (found[0][index], found[1][index]),
            redrawn[0][:, index],
            redrawn[1][:, index],
        )
        for index, name in enumerate(_QUANTILES)
    ]


class _Sample:
    """A latency's values in order, each with the number of its request."""

    def __init__(self, latency: Latency, records: Sequence[RequestRecord]) -> None:
        completed = [latency.values(record) for record in records if record.outcome is Outcome.COMPLETED]
        told = [values for values in completed if values]
        self.num_requests = len(told)
        values = np.array([value for values in told for value in values])
        owners = np.repeat(np.arange(len(told)), [len(values) for values in told])
        order = np.argsort(values, kind="stable")
        self.values, self._owners = values[order], owners[order]

    def quantiles(self, counts: np.ndarray) -> np.ndarray:
        """Return the quantiles if each request were there so many times."""
        ranks = np.cumsum(counts[self._owners])
        wanted = np.array(list(_QUANTILES.values())) * ranks[-1]
        return self.values[np.minimum(np.searchsorted(ranks, wanted), self.values.size - 1)]

    def redrawn(self, draws: np.random.Generator) -> np.ndarray:
        """Return the quantiles of many samples drawn again."""
        alike = np.full(self.num_requests, 1 / self.num_requests)
        return np.array([self.quantiles(draws.multinomial(self.num_requests, alike)) for _ in range(_NUM_DRAWS)])


def _rate_rows(first: Side, second: Side, draws: np.random.Generator) -> list[Row]:
    figures: dict[str, tuple[str, Callable[[RequestRecord, Slo], float]]] = {
        "throughput": ("requests/s", lambda record, _: float(record.outcome is Outcome.COMPLETED)),
        "tokens": ("tokens/s", lambda record, _: float(record.num_output_tokens)),
        "goodput": ("requests/s", lambda record, slo: float(slo.is_met_by(record))),
    }
    rows = []
    for title, (unit, worth) in figures.items():
        windows = [_windows(side, worth) for side in (first, second)]
        means = [values.mean() for values in windows]
        redrawn = [
            draws.choice(values, (_NUM_DRAWS, values.size)).mean(axis=1) if values.size else values
            for values in windows
        ]
        rows.append(_row(title, unit, (means[0], means[1]), redrawn[0], redrawn[1]))
    return rows


def _windows(side: Side, worth: Callable[[RequestRecord, Slo], float]) -> np.ndarray:
    """Return what was done a second in each of the run's windows."""
    measured = side.measured
    ended = [record.ended_s for record in measured]
    done = [worth(record, side.slo) for record in measured]
    sums, _ = np.histogram(ended, bins=_NUM_WINDOWS, range=(0.0, side.report.duration_s), weights=done)
    return np.asarray(sums / (side.report.duration_s / _NUM_WINDOWS))


def _row(title: str, unit: str, found: tuple[float, float], first: np.ndarray, second: np.ndarray) -> Row:
    was, now = float(found[0]), float(found[1])
    usable = first > 0
    if was <= 0 or not usable.any():
        return Row(title, unit, was, now, None, None, None)
    low, high = np.percentile(second[usable] / first[usable], _ENDS)
    return Row(title, unit, was, now, now / was, float(low), float(high))


def _differences(first: Mapping[str, object], second: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    one, other = _flat(first), _flat(second)
    keys = [key for key in {**one, **other} if key not in {"name", "about", "target.address", "observe.address"}]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _flat(values: Mapping[str, object], above: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat
