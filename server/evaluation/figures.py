"""What is said of an adapter combination from its requests: means, spread, windows over time, drift.

Plain arithmetic on what it is handed; knows no database and no clock. Any thread may call.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.scoring.bootstrap import Bootstrap, Interval, mean_intervals
from server.evaluation.drift import Drift, drift_between
from server.evaluation.outcome import OK

PROMPT_TOKENS = "prompt_tokens"
_BOOTSTRAP = Bootstrap(num_resamples=200)
_MIN_NUM_FOR_DRIFT = 30


@dataclass(frozen=True, slots=True)
class Examined:
    """What figures are made of: one ended request.

    Attributes:
        code: ``OK`` or an error code.
        finished_s: When it ended, in Unix time.
        num_prompt_tokens: Of its prompt.
        signals: Signal → value; empty where there was no answer.
        scores: Metric → value; None where it was not scored.
    """

    code: str
    finished_s: float
    num_prompt_tokens: int
    signals: Mapping[str, float]
    scores: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """A metric or a signal over all examined requests that have it.

    Attributes:
        count: How many have it.
        mean: Mean.
        low: Lower end of the mean's 95 % interval.
        high: Upper end.
        p10: 10th percentile of the requests.
        p50: Median.
        p90: 90th percentile.
    """

    count: int
    mean: float
    low: float
    high: float
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class WindowFigures:
    """A stretch of time.

    Attributes:
        start_s: Its begin, in Unix time.
        end_s: Its end, not in it.
        num_finished: Requests that ended in it.
        num_scored: Of these, scored.
        means: Metric → mean.
        low: Metric → lower end of the mean's 95 % interval.
        high: Metric → upper end.
    """

    start_s: float
    end_s: float
    num_finished: int
    num_scored: int
    means: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all requests that are kept of one combination."""

    num_finished: int
    num_errors: int
    num_scored: int


@dataclass(frozen=True, slots=True)
class AdapterEvaluation:
    """What was measured of one adapter combination.

    Attributes:
        adapters: ``base``, ``name:version`` or two joined by ``+``.
        totals: Counts over all requests kept.
        means: Metric name → mean over the examined requests; signals not among them.
        metrics: Metric or signal → its figures over the examined requests.
        windows: Stretches of time of one length, oldest first.
        drift: ``prompt_tokens`` or signal → whether the last window differs from what was before; only where both
            have enough requests.
    """

    adapters: str
    totals: Totals
    means: Mapping[str, float]
    metrics: Mapping[str, MetricFigures]
    windows: tuple[WindowFigures, ...]
    drift: Mapping[str, Drift]


@dataclass(frozen=True, slots=True)
class Period:
    """The windows asked for.

    Attributes:
        now_s: Unix time.
        window_s: Length of a window.
        num_windows: How many, the last one with now in it.
    """

    now_s: float
    window_s: float
    num_windows: int

    @property
    def bounds_s(self) -> tuple[float, ...]:
        """Begin of each window and end of the last; multiples of the length, so that they stay as time goes on."""
        last = int(self.now_s // self.window_s) + 1
        return tuple(self.window_s * index for index in range(last - self.num_windows, last + 1))


def evaluate(adapters: str, totals: Totals, examined: Sequence[Examined], period: Period) -> AdapterEvaluation:
    """Return what is to be said of a combination.

    Args:
        adapters: Its label.
        totals: Counts over all its requests.
        examined: Its newest requests, in any order.
        period: The windows wanted.
    """
    scores = [row.scores for row in examined if row.scores is not None]
    scored = _figures(scores)
    return AdapterEvaluation(
        adapters,
        totals,
        means={name: figures.mean for name, figures in scored.items()},
        metrics=scored | _figures([row.signals for row in examined]),
        windows=tuple(_windows(examined, period)),
        drift=_drift(examined, period.now_s - period.window_s),
    )


def _figures(rows: Sequence[Mapping[str, float]]) -> dict[str, MetricFigures]:
    found: dict[str, MetricFigures] = {}
    for names, values_EM in _tables(rows):
        spread_3M = np.percentile(values_EM, [10.0, 50.0, 90.0], axis=0)
        for index, interval in enumerate(mean_intervals(values_EM, _BOOTSTRAP)):
            p10, p50, p90 = (float(value) for value in spread_3M[:, index])
            found[names[index]] = MetricFigures(
                len(values_EM), interval.value, interval.low, interval.high, p10, p50, p90
            )
    return dict(sorted(found.items()))


def _tables(rows: Sequence[Mapping[str, float]]) -> "Iterable[tuple[list[str], np.ndarray[tuple[int, int]]]]":
    """Return names and their values, one row a request; names that the same requests have share a table."""
    having: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for name in row:
            having.setdefault(name, []).append(index)
    together: dict[tuple[int, ...], list[str]] = {}
    for name, indices in having.items():
        together.setdefault(tuple(indices), []).append(name)
    for shared, names in together.items():
        yield names, np.array([[rows[index][name] for name in names] for index in shared])


def _windows(examined: Sequence[Examined], period: Period) -> Iterable[WindowFigures]:
    bounds_s = period.bounds_s
    inside: list[list[Examined]] = [[] for _ in range(period.num_windows)]
    for row in examined:
        index = int((row.finished_s - bounds_s[0]) // period.window_s)
        if 0 <= index < period.num_windows:
            inside[index].append(row)
    for index, rows in enumerate(inside):
        scores = [row.scores for row in rows if row.scores is not None]
        intervals = _intervals(scores)
        yield WindowFigures(
            bounds_s[index],
            bounds_s[index + 1],
            len(rows),
            len(scores),
            means={name: interval.value for name, interval in intervals.items()},
            low={name: interval.low for name, interval in intervals.items()},
            high={name: interval.high for name, interval in intervals.items()},
        )


def _intervals(scores: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    return {
        name: interval
        for names, values_EM in _tables(scores)
        for name, interval in zip(names, mean_intervals(values_EM, _BOOTSTRAP), strict=True)
    }


def _drift(examined: Sequence[Examined], since_s: float) -> dict[str, Drift]:
    samples: dict[str, tuple[list[float], list[float]]] = {}
    for row in examined:
        if row.code != OK:
            continue
        is_recent = row.finished_s >= since_s
        for name, value in {PROMPT_TOKENS: float(row.num_prompt_tokens), **row.signals}.items():
            samples.setdefault(name, ([], []))[is_recent].append(value)
    return {
        name: drift_between(earlier, recent)
        for name, (earlier, recent) in sorted(samples.items())
        if min(len(earlier), len(recent)) >= _MIN_NUM_FOR_DRIFT
    }
