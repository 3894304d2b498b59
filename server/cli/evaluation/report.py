"""What ``GET /v1/evaluations`` says, read with care: an older server says less. Knows no server and no tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """One metric of one adapter combination; None where the server does not say.

    Attributes:
        name: The metric.
        count: Answers it was had of.
        mean: Their mean.
        low: Lower end of the mean's interval.
        high: Upper end.
        p10: One in ten is lower.
        p50: Median.
        p90: One in ten is higher.
    """

    name: str
    count: int
    mean: float
    low: float | None = None
    high: float | None = None
    p10: float | None = None
    p50: float | None = None
    p90: float | None = None


@dataclass(frozen=True, slots=True)
class WindowMean:
    """A metric's mean within one window of time, which ends at ``end_s`` (Unix time)."""

    end_s: float
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One adapter combination.

    Attributes:
        adapters: ``base``, ``name:version``, or two joined by ``+``.
        num_finished: Requests that ended; None where the server does not say.
        num_errors: Those that failed; None where it does not say.
        num_scored: Those that were scored against references.
        metrics: Its metrics.
        windows: Metric name → means over time, oldest first, without windows that have none.
        drifted: What no longer looks as it did, by name; None where nothing was compared.
    """

    adapters: str
    num_finished: int | None
    num_errors: int | None
    num_scored: int
    metrics: tuple[MetricFigures, ...]
    windows: Mapping[str, Sequence[WindowMean]]
    drifted: tuple[str, ...] | None


def reports_of(document: Mapping[str, object], adapter: str | None) -> list[EvaluationReport]:
    """Read an answer.

    Args:
        document: The answer.
        adapter: Keep only combinations that this adapter is part of; all when None.

    Raises:
        ValueError: If it is no answer of a Medley server.
    """
    return [_report(entry) for entry in entries_of(document, adapter)]


def entries_of(document: Mapping[str, object], adapter: str | None) -> list[Mapping[str, object]]:
    """Return the entries of an answer that an adapter is part of.

    Raises:
        ValueError: If it is no answer of a Medley server.
    """
    entries = document.get("evaluations")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "adapters" in entry for entry in entries):
        raise ValueError("the answer has no list of evaluations")
    parts = ((entry, str(entry["adapters"]).split("+")) for entry in entries)
    return [
        entry
        for entry, names in parts
        if adapter is None or any(adapter in (name, name.partition(":")[0]) for name in names)
    ]


def _report(entry: Mapping[str, object]) -> EvaluationReport:
    return EvaluationReport(
        adapters=str(entry["adapters"]),
        num_finished=_count(entry, "num_finished"),
        num_errors=_count(entry, "num_errors"),
        num_scored=_count(entry, "num_scored") or 0,
        metrics=_metrics(entry),
        windows=_windows(entry),
        drifted=_drifted(entry),
    )


def _metrics(entry: Mapping[str, object]) -> tuple[MetricFigures, ...]:
    """Return the metrics in full where they are there, else the bare means."""
    num_scored = _count(entry, "num_scored") or 0
    full = _object(entry, "metrics")
    means = {
        name: mean for name in _object(entry, "means") if (mean := _number(_object(entry, "means"), name)) is not None
    }
    found = []
    for name in {**full, **means}:
        figures = _object(full, name)
        mean = _number(figures, "mean")
        if mean is None:
            mean = means.get(name)
        if mean is not None:
            count = _count(figures, "count")
            parts = {part: _number(figures, part) for part in ("low", "high", "p10", "p50", "p90")}
            found.append(MetricFigures(name, num_scored if count is None else count, mean, **parts))
    return tuple(found)


def _windows(entry: Mapping[str, object]) -> dict[str, list[WindowMean]]:
    series: dict[str, list[WindowMean]] = {}
    windows = entry.get("windows")
    for window in windows if isinstance(windows, list) else ():
        means, end_s = _object(window, "means"), _number(window, "end_s")
        for name in means:
            mean = _number(means, name)
            if mean is not None and end_s is not None:
                low, high = _number(_object(window, "low"), name), _number(_object(window, "high"), name)
                series.setdefault(name, []).append(WindowMean(end_s, mean, low, high))
    return {name: sorted(means, key=lambda mean: mean.end_s) for name, means in series.items()}


def _drifted(entry: Mapping[str, object]) -> tuple[str, ...] | None:
    drift = _object(entry, "drift")
    if not drift:
        return None
    return tuple(name for name in drift if _object(drift, name).get("drifted") is True)


def _object(parent: object, key: str) -> Mapping[str, object]:
    value = parent.get(key) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _number(parent: object, key: str) -> float | None:
    value = parent.get(key) if isinstance(parent, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(parent: object, key: str) -> int | None:
    number = _number(parent, key)
    return None if number is None else int(number)
