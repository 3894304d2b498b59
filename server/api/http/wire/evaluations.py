"""What the evaluation routes answer."""

from typing_extensions import TypedDict

from server.evaluation.drift import Drift
from server.evaluation.figures import AdapterEvaluation, MetricFigures, WindowFigures
from server.evaluation.reference_sets import ReferenceSet


class MetricWire(TypedDict):
    """A metric or signal over the examined requests: mean, its 95 % interval, and percentiles of the requests."""

    count: int
    mean: float
    low: float
    high: float
    p10: float
    p50: float
    p90: float


class WindowWire(TypedDict):
    """A stretch of time; means with their 95 % intervals by metric name."""

    start_s: float
    end_s: float
    num_finished: int
    num_scored: int
    means: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


class DriftWire(TypedDict):
    """Whether the last window's values differ from those before: the two-sample Kolmogorov-Smirnov test."""

    statistic: float
    p_value: float
    drifted: bool


class EvaluationWire(TypedDict):
    """Figures of one adapter version, of two joined by ``+``, or of the base."""

    adapters: str
    num_finished: int
    num_errors: int
    num_scored: int
    means: dict[str, float]
    metrics: dict[str, MetricWire]
    windows: list[WindowWire]
    drift: dict[str, DriftWire]


class EvaluationList(TypedDict):
    """The figures of the requests that are kept."""

    evaluations: list[EvaluationWire]


class ReferenceSetWire(TypedDict):
    """A reference set."""

    name: str
    num_references: int
    updated_s: float


class ReferenceSetList(TypedDict):
    """The caller's reference sets."""

    reference_sets: list[ReferenceSetWire]


class LineErrorWire(TypedDict):
    """What is wrong with one row of a body."""

    line: int
    message: str


class ReferenceBatchAnswer(TypedDict):
    """What became of the rows: scored; of a request that is not known here; refused."""

    num_accepted: int
    num_unknown: int
    num_refused: int
    errors: list[LineErrorWire]


def evaluation_wire(entry: AdapterEvaluation) -> EvaluationWire:
    """Translate the figures of a combination."""
    return {
        "adapters": entry.adapters,
        "num_finished": entry.totals.num_finished,
        "num_errors": entry.totals.num_errors,
        "num_scored": entry.totals.num_scored,
        "means": dict(entry.means),
        "metrics": {name: _metric(figures) for name, figures in entry.metrics.items()},
        "windows": [_window(window) for window in entry.windows],
        "drift": {name: _drift(drift) for name, drift in entry.drift.items()},
    }


def set_wire(found: ReferenceSet) -> ReferenceSetWire:
    """Translate a reference set."""
    return {"name": found.name, "num_references": found.num_references, "updated_s": found.updated_s}


def _metric(figures: MetricFigures) -> MetricWire:
    return {
        "count": figures.count,
        "mean": figures.mean,
        "low": figures.low,
        "high": figures.high,
        "p10": figures.p10,
        "p50": figures.p50,
        "p90": figures.p90,
    }


def _window(window: WindowFigures) -> WindowWire:
    return {
        "start_s": window.start_s,
        "end_s": window.end_s,
        "num_finished": window.num_finished,
        "num_scored": window.num_scored,
        "means": dict(window.means),
        "low": dict(window.low),
        "high": dict(window.high),
    }


def _drift(drift: Drift) -> DriftWire:
    return {"statistic": drift.statistic, "p_value": drift.p_value, "drifted": drift.drifted}
