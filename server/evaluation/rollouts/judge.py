"""From the requests of a rollout to a verdict: quality by a sequential test, errors and latency by guard rails.

Plain functions of what is handed in; nothing is remembered but a verdict that was reached. Any thread; milliseconds for
thousands of requests, so not for the event loop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.core.errors import ErrorCode
from server.evaluation.outcome import Arm, RolloutOutcome
from server.evaluation.rollouts.evidence import Values, is_above, is_mean_above
from server.evaluation.rollouts.records import ArmFigures, Arms, Mode, Plan, Verdict

OK = "OK"
ERROR_RATE = 0.05
"""Probability that the quality of two equal versions ever looks different, over a whole rollout."""
GUARD_ERROR_RATE = 0.01
"""The same for each guard rail."""
MIN_NUM_SCORED = 10
"""Scores of each arm below which nothing is said; the test holds for any number, but people must explain it."""
_MIN_NUM_LATENCIES = 20
_SLOW_SHARE = 0.05
# What a caller can bring about, or a crowd of them, says nothing of a version.
_FAILURES = frozenset({ErrorCode.INTERNAL, ErrorCode.UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED})


class RolloutOutcomes(Protocol):
    """Where the ended requests of rollouts are kept. Any thread."""

    def rollout_outcomes(self, rollout_id: str) -> Sequence[RolloutOutcome]:
        """Return the ended requests of a rollout, oldest first, those of all servers."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the figures say.

    Attributes:
        verdict: The verdict.
        reason: Why, for people.
        arms: The figures.
    """

    verdict: Verdict
    reason: str
    arms: Arms

    @property
    def num_requests(self) -> int:
        """Requests of both arms."""
        return self.arms.stable.num_requests + self.arms.candidate.num_requests


@dataclass(frozen=True, slots=True)
class Side:
    """The requests of one side as the judge looks at them.

    Attributes:
        scores: Of the good answers that have one, from 0 to 1.
        failures: Of all requests, 1 for each that failed by no fault of the caller's.
        latencies_s: Of the good answers.
    """

    scores: Values
    failures: Values
    latencies_s: Values

    @property
    def figures(self) -> ArmFigures:
        """What people are told of it."""
        num_requests, num_scored = len(self.failures), len(self.scores)
        return ArmFigures(
            num_requests=num_requests,
            num_scored=num_scored,
            mean=100.0 * float(self.scores.mean()) if num_scored else None,
            error_rate=float(self.failures.mean()) if num_requests else None,
            p95_e2e_ms=1e3 * _p95(self.latencies_s) if len(self.latencies_s) else None,
        )


def judge(plan: Plan, outcomes: Sequence[RolloutOutcome], before: Verdict = Verdict.NO_DATA) -> Judgement:
    """Return what the requests so far say of the candidate.

    Args:
        plan: The rollout's.
        outcomes: Its ended requests.
        before: What was said last: a verdict once reached stays, but for a guard rail.
    """
    stable = _side(plan, [outcome for outcome in outcomes if outcome.arm is Arm.STABLE])
    candidate = _side(plan, [outcome for outcome in outcomes if outcome.arm is not Arm.STABLE])
    return judge_sides(plan, stable, candidate, before)


def judge_sides(plan: Plan, stable: Side, candidate: Side, before: Verdict = Verdict.NO_DATA) -> Judgement:
    """Return what both sides say of the candidate; see :func:`judge`."""
    arms = Arms(stable.figures, candidate.figures)
    for reason in (_too_many_errors(plan, stable, candidate), _too_slow(plan, stable, candidate)):
        if reason:
            return Judgement(Verdict.GUARD_RAIL, reason, arms)
    if before.is_final:
        return Judgement(before, f"it was found to be {before} before", arms)
    fewest = min(len(stable.scores), len(candidate.scores))
    if fewest < MIN_NUM_SCORED:
        return Judgement(
            Verdict.NO_DATA, f"an arm has {fewest} scores of {plan.terms.metric}, below {MIN_NUM_SCORED}", arms
        )
    return Judgement(*_quality(plan, stable, candidate), arms)


def _quality(plan: Plan, stable: Side, candidate: Side) -> tuple[Verdict, str]:
    share, error_rate = planned_share(plan), ERROR_RATE / 2
    means = f"mean {plan.terms.metric} {100 * candidate.scores.mean():.2f} against {100 * stable.scores.mean():.2f}"
    margin = plan.terms.min_effect / 100.0
    if is_above(candidate.scores, stable.scores, share=share, margin=margin, error_rate=error_rate):
        return Verdict.BETTER, f"{means}: higher by more than {plan.terms.min_effect:g} points"
    if is_above(stable.scores, candidate.scores, share=1.0 - share, error_rate=error_rate):
        return Verdict.WORSE, f"{means}: lower"
    return Verdict.INCONCLUSIVE, f"{means}: too close, or too few to tell"


def planned_share(plan: Plan) -> float:
    """Return the share of a rollout's ended requests that are to be the candidate's."""
    return plan.terms.percent / 100.0 if plan.terms.mode is Mode.CANARY else 0.5


def _too_many_errors(plan: Plan, stable: Side, candidate: Side) -> str:
    margin, share = plan.terms.max_error_rate_increase, planned_share(plan)
    if not is_above(candidate.failures, stable.failures, share=share, margin=margin, error_rate=GUARD_ERROR_RATE):
        return ""
    failing, before = candidate.failures.mean(), stable.failures.mean()
    return f"{failing:.1%} of the candidate's requests fail, {before:.1%} of the stable's: over {margin:.1%} more"


def _too_slow(plan: Plan, stable: Side, candidate: Side) -> str:
    if len(stable.latencies_s) < _MIN_NUM_LATENCIES:
        return ""
    bound_s = plan.terms.max_latency_ratio * _p95(stable.latencies_s)
    slow = (candidate.latencies_s > bound_s).astype(np.float64)
    if not is_mean_above(slow, _SLOW_SHARE, error_rate=GUARD_ERROR_RATE):
        return ""
    return (
        f"{slow.mean():.1%} of the candidate's answers take over {1e3 * bound_s:.0f} ms, "
        f"{plan.terms.max_latency_ratio:g} times the stable's 95th percentile"
    )


def _side(plan: Plan, outcomes: Sequence[RolloutOutcome]) -> Side:
    good = [outcome for outcome in outcomes if outcome.code == OK]
    found = (outcome.scores.get(plan.terms.metric, math.nan) for outcome in good)
    scores = [score for score in found if math.isfinite(score)]
    return Side(
        scores=np.clip(np.array(scores, np.float64) / 100.0, 0.0, 1.0),
        failures=np.array([outcome.code in _FAILURES for outcome in outcomes], np.float64),
        latencies_s=np.array([outcome.e2e_s for outcome in good], np.float64),
    )


def _p95(latencies_s: Values) -> float:
    return float(np.quantile(latencies_s, 0.95))
