"""What the records of a replay say: each system's means with intervals, its latencies, and each pair compared.

Two systems are compared on the cases both answered (paired), so that a hard case counts against neither. Knows no
server and no tables.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from adapters.scoring.bootstrap import Bootstrap, Interval, mean_interval
from server.cli.evaluation.records import ReplayRecord


@dataclass(frozen=True, slots=True)
class SystemSummary:
    """One system's part.

    Attributes:
        system: Adapter references joined by ``+``, or ``base``.
        served: Every version that answered under that name; more than one if an alias moved meanwhile.
        num_answered: Requests answered.
        errors: Error code → requests that ended with it.
        num_retries: Tries beyond the first of each request.
        figures: Metric name → mean with its interval.
        latency_p50_ms: Half of the answers took less; 0 without any.
        latency_p99_ms: 99 in 100 took less; 0 without any.
    """

    system: str
    served: tuple[str, ...]
    num_answered: int
    errors: Mapping[str, int]
    num_retries: int
    figures: Mapping[str, Interval]
    latency_p50_ms: float
    latency_p99_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the cases both answered.

    Attributes:
        first: One system.
        second: The other.
        num_cases: Cases both answered.
        differences: Metric name → mean of first minus second with its interval; clear where zero is outside.
    """

    first: str
    second: str
    num_cases: int
    differences: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """A whole replay.

    Attributes:
        num_cases: Cases played.
        level: Share of bootstrap draws inside an interval.
        systems: In the order they were asked for.
        comparisons: Every pair of them.
    """

    num_cases: int
    level: float
    systems: tuple[SystemSummary, ...]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


def summarize_replay(
    records: Sequence[ReplayRecord], systems: Sequence[str], num_cases: int, bootstrap: Bootstrap
) -> ReplaySummary:
    """Sum up a replay.

    Args:
        records: One a request; those of other systems or later cases are left out.
        systems: Those asked for.
        num_cases: Cases played, from the first.
        bootstrap: How intervals are drawn.
    """
    by_system: dict[str, list[ReplayRecord]] = {system: [] for system in systems}
    for record in records:
        if record.system in by_system and record.case < num_cases:
            by_system[record.system].append(record)
    return ReplaySummary(
        num_cases,
        bootstrap.level,
        tuple(_system(system, found, bootstrap) for system, found in by_system.items()),
        tuple(
            # The base is asked for first, so that what an adapter gains is above zero.
            _comparison(first, second, by_system[first], by_system[second], bootstrap)
            for second, first in combinations(by_system, 2)
        ),
    )


def _system(system: str, records: Sequence[ReplayRecord], bootstrap: Bootstrap) -> SystemSummary:
    answered = [record for record in records if record.is_answered]
    p50_ms, p99_ms = np.percentile([record.latency_ms for record in answered], [50, 99]) if answered else (0.0, 0.0)
    return SystemSummary(
        system=system,
        served=tuple(sorted({record.served for record in answered})),
        num_answered=len(answered),
        errors=dict(sorted(Counter(record.code for record in records if not record.is_answered).items())),
        num_retries=sum(record.num_tries - 1 for record in records),
        figures={
            name: mean_interval(
                np.array([record.figures[name] for record in answered if name in record.figures]), bootstrap
            )
            for name in _names(answered)
        },
        latency_p50_ms=float(p50_ms),
        latency_p99_ms=float(p99_ms),
    )


def _comparison(
    first: str, second: str, ours: Sequence[ReplayRecord], theirs: Sequence[ReplayRecord], bootstrap: Bootstrap
) -> Comparison:
    others = {record.case: record for record in theirs if record.is_answered}
    pairs = [(record, others[record.case]) for record in ours if record.is_answered and record.case in others]
    differences = {}
    for name in _names([record for record, _ in pairs]):
        both = [(one.figures, other.figures) for one, other in pairs if name in one.figures and name in other.figures]
        if both:
            differences[name] = mean_interval(np.array([one[name] - other[name] for one, other in both]), bootstrap)
    return Comparison(first, second, len(pairs), differences)


def _names(records: Sequence[ReplayRecord]) -> list[str]:
    """Return the figures that any record has, in their order; a metric may say nothing of an empty answer."""
    return list(dict.fromkeys(name for record in records for name in record.figures))
