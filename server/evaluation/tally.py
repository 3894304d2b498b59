"""Running means of scores per adapter combination, bounded in number. Safe to use from any thread."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

BASE = "base"
OTHER = "other"


@dataclass(frozen=True, slots=True)
class AdapterEvaluation:
    """What was measured of one adapter combination.

    Attributes:
        adapters: ``base``, ``name:version``, two joined by ``+``, or ``other``.
        num_scored: Requests scored.
        means: Metric name → mean F-measure in percent.
    """

    adapters: str
    num_scored: int
    means: Mapping[str, float]


@dataclass(slots=True)
class _Sums:
    num_scored: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class Tally:
    """Sums per label.

    Args:
        max_num_labels: Most labels kept apart; later ones are counted under ``other``.
    """

    def __init__(self, max_num_labels: int) -> None:
        """Start empty."""
        self._max_num_labels = max_num_labels
        self._by_label: dict[str, _Sums] = {}
        self._lock = threading.Lock()

    def add(self, label: str, scores: Mapping[str, float]) -> str:
        """Count one scored request and return the label it was counted under."""
        with self._lock:
            if label not in self._by_label and len(self._by_label) >= self._max_num_labels:
                label = OTHER
            entry = self._by_label.setdefault(label, _Sums())
            entry.num_scored += 1
            for metric, score in scores.items():
                entry.sums[metric] = entry.sums.get(metric, 0.0) + score
            return label

    def evaluations(self) -> tuple[AdapterEvaluation, ...]:
        """Return the means, by label."""
        with self._lock:
            return tuple(
                AdapterEvaluation(label, sums.num_scored, {name: s / sums.num_scored for name, s in sums.sums.items()})
                for label, sums in sorted(self._by_label.items())
            )
