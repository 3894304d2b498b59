"""Answers of several systems to the same cases, scored: every figure of every case, means, and how sure they are.

It knows no models and no adapters, only what was answered; :mod:`training.evaluation_report` writes the result down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.scoring.bleu import BleuScorer
from adapters.scoring.bootstrap import DEFAULT_BOOTSTRAP, Bootstrap, Interval, mean_interval, sums_interval
from adapters.scoring.overlap import ReferenceMode
from adapters.scoring.suite import MetricSuite
from training.engine_generation import GREEDY, Sampling


@dataclass(frozen=True)
class EvaluationCase:
    """A text to answer about, and what people answered."""

    source: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationOptions:
    """How answers are made and scored.

    Attributes:
        max_new_tokens: most tokens of an answer.
        sampling: how tokens are chosen.
        mode: how several references count in ROUGE.
        bootstrap: how intervals are drawn.
    """

    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    mode: ReferenceMode = ReferenceMode.BEST
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP


@dataclass(frozen=True)
class SystemResult:
    """How one system did: the base, an adapter, or a pair of adapters.

    Attributes:
        name: what the report calls it.
        predictions: its answer to each case.
        figures: what `MetricSuite` says of each answer.
        means: the mean of each figure, with its interval.
        bleu: BLEU of all answers together, in percent, with its interval.
        bleu_signature: how BLEU was computed.
        beside_base: the mean of each figure minus the base's on the same cases (paired); empty for the base itself.
    """

    name: str
    predictions: tuple[str, ...]
    figures: tuple[Mapping[str, float], ...]
    means: Mapping[str, Interval]
    bleu: Interval
    bleu_signature: str
    beside_base: Mapping[str, Interval]

    def values(self, figure: str) -> NDArray[np.float64]:
        """Return one figure of every case, in order: a row of the table `seeds_interval` takes.

        Raises:
            KeyError: no such figure.
        """
        return np.array([each[figure] for each in self.figures])


@dataclass(frozen=True)
class EvaluationResult:
    """What was asked, how, and how every system did; the base comes first."""

    cases: tuple[EvaluationCase, ...]
    options: EvaluationOptions
    systems: tuple[SystemResult, ...]


def score_systems(
    predictions: Mapping[str, Sequence[str]], cases: Sequence[EvaluationCase], options: EvaluationOptions
) -> EvaluationResult:
    """Score answers; the first system is what the others are compared with.

    Args:
        predictions: name → the system's answer to each case.
        cases: what was asked.
        options: how the answers were made and are to be scored.

    Raises:
        ValueError: no cases, a case without references, or not one answer a case.
    """
    if not cases:
        raise ValueError("there are no cases to score")
    scorer = _Scorer(cases, options)
    systems: list[SystemResult] = []
    for name, answers in predictions.items():
        systems.append(scorer.score(name, answers, beside=systems[0] if systems else None))
    return EvaluationResult(tuple(cases), options, tuple(systems))


class _Scorer:
    """Scores one system after the other on the same cases."""

    def __init__(self, cases: Sequence[EvaluationCase], options: EvaluationOptions) -> None:
        self._cases, self._bootstrap = cases, options.bootstrap
        self._suite, self._bleu = MetricSuite(options.mode), BleuScorer()

    def score(self, name: str, answers: Sequence[str], *, beside: SystemResult | None) -> SystemResult:
        figures = [
            self._suite.score(answer, case.references, case.source)
            for answer, case in zip(answers, self._cases, strict=True)
        ]
        references = [case.references for case in self._cases]
        counts = self._bleu.statistics(answers, references)
        values = {figure: np.array([each[figure] for each in figures]) for figure in figures[0]}
        return SystemResult(
            name=name,
            predictions=tuple(answers),
            figures=tuple(figures),
            means={figure: mean_interval(values[figure], self._bootstrap) for figure in values},
            bleu=sums_interval(counts, self._bleu.of_statistics, self._bootstrap),
            bleu_signature=self._bleu.corpus(answers, references).signature,
            beside_base={
                figure: mean_interval(values[figure] - beside.values(figure), self._bootstrap)
                for figure in (values if beside else ())
            },
        )
