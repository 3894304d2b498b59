"""Precision, recall and F of what a text shares with a reference, and how several references count. Knows no words."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a text shares with a reference; shares of 1.

    Attributes:
        precision: Share of the text's units that are in the reference.
        recall: Share of the reference's units that are in the text.
        f: Harmonic mean of both; 0 where both are.
    """

    precision: float
    recall: float
    f: float

    @classmethod
    def of(cls, precision: float, recall: float) -> "Overlap":
        """Return the overlap with this precision and recall."""
        total = precision + recall
        return cls(precision, recall, 2.0 * precision * recall / total if total else 0.0)

    @classmethod
    def of_counts(cls, num_matches: int, num_predicted: int, num_referenced: int) -> "Overlap":
        """Return the overlap of so many matching units; where there are no units, precision or recall is 0."""
        return cls.of(num_matches / max(num_predicted, 1), num_matches / max(num_referenced, 1))


class ReferenceMode(StrEnum):
    """How an example with several references counts. Where there is one, all three are the same.

    ``best``, the default and what ``rouge_score.score_multi`` gives: the reference with the highest F.
    ``mean``: precision, recall and F averaged over the references.
    ``jackknife``: the best of all references but one, averaged over which one is left out; lets a person, who has one
    reference less to be compared with, be scored on equal terms.

    Source:
        Lin 2004, section 2.1, https://aclanthology.org/W04-1013.
    """

    BEST = "best"
    MEAN = "mean"
    JACKKNIFE = "jackknife"


def require_examples(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse a corpus that no metric can score.

    Raises:
        ValueError: If there are no examples, an example has no references, or the lengths differ.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references")
    if not all(references):
        raise ValueError("every prediction needs at least one reference")


def combine(overlaps: Sequence[Overlap], mode: ReferenceMode) -> Overlap:
    """Return one overlap for those with each reference.

    Raises:
        ValueError: If there are no references.
    """
    if not overlaps:
        raise ValueError("every prediction needs at least one reference")
    if mode is ReferenceMode.MEAN:
        return _mean(overlaps)
    if mode is ReferenceMode.JACKKNIFE and len(overlaps) > 1:
        return _mean([_best([*overlaps[:left_out], *overlaps[left_out + 1 :]]) for left_out in range(len(overlaps))])
    return _best(overlaps)


def _best(overlaps: Sequence[Overlap]) -> Overlap:
    return max(overlaps, key=lambda overlap: overlap.f)


def _mean(overlaps: Sequence[Overlap]) -> Overlap:
    return Overlap(*(fmean(getattr(overlap, part) for overlap in overlaps) for part in ("precision", "recall", "f")))
