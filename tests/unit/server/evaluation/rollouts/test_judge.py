"""Verdicts: quality, guard rails, and what is not known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from server.core.errors import ErrorCode
from server.evaluation.outcome import Arm, RolloutOutcome
from server.evaluation.rollouts.judge import judge
from server.evaluation.rollouts.records import Mode, Plan, Terms, Verdict

DRAWS = np.random.default_rng(11)


def plan(**terms: object) -> Plan:
    return Plan("a", "stable", 1, 2, Terms(**terms))  # type: ignore[arg-type]


def ended(
    arm: Arm, scores: Sequence[float] = (), *, codes: Sequence[str] = (), e2e_s: float = 0.2, metric: str = "rougeL"
) -> list[RolloutOutcome]:
    """Good answers with these scores, and requests that ended with these codes."""
    good = [RolloutOutcome(arm, "OK", e2e_s, {metric: score}, 0.0) for score in scores]
    return good + [RolloutOutcome(arm, code, e2e_s, {}, 0.0) for code in codes]


def around(mean: float, count: int = 200) -> list[float]:
    return list(np.clip(DRAWS.normal(mean, 10.0, count), 0.0, 100.0))


def test_better_and_worse_candidates_are_found() -> None:
    better = judge(plan(), ended(Arm.STABLE, around(25)) + ended(Arm.CANDIDATE, around(35)))
    worse = judge(plan(), ended(Arm.STABLE, around(35)) + ended(Arm.CANDIDATE, around(25)))
    assert (better.verdict, worse.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert better.arms.candidate.num_scored == 200
    assert better.num_requests == 400
    assert better.arms.candidate.mean == pytest.approx(35, abs=2)
    assert better.arms.stable.p95_e2e_ms == pytest.approx(200)


def test_effect_below_the_least_wanted_is_no_promotion() -> None:
    outcomes = ended(Arm.STABLE, around(25)) + ended(Arm.CANDIDATE, around(33))
    assert judge(plan(min_effect=15.0), outcomes).verdict is Verdict.INCONCLUSIVE


def test_equal_candidate_is_inconclusive() -> None:
    same = around(25)
    assert judge(plan(), ended(Arm.STABLE, same) + ended(Arm.CANDIDATE, same)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        ended(Arm.STABLE, around(10, 50)) + ended(Arm.CANDIDATE, around(90, 9)),
        ended(Arm.STABLE, around(10, 9)) + ended(Arm.CANDIDATE, around(90, 50)),
        ended(Arm.STABLE, around(10, 50)) + ended(Arm.CANDIDATE, around(90, 50), metric="bleu"),
        ended(Arm.STABLE, around(10, 50)) + ended(Arm.CANDIDATE, [math.nan] * 50),
        ended(Arm.STABLE, codes=["OK"] * 50) + ended(Arm.CANDIDATE, codes=["OK"] * 50),
    ],
    ids=["nothing", "few candidate", "few stable", "other metric", "no numbers", "unscored"],
)
def test_missing_scores_are_no_data_whatever_the_others_say(outcomes: list[RolloutOutcome]) -> None:
    assert judge(plan(), outcomes).verdict is Verdict.NO_DATA


def test_shadow_stands_for_the_candidate() -> None:
    outcomes = ended(Arm.STABLE, around(25)) + ended(Arm.SHADOW, around(35))
    assert judge(plan(mode=Mode.SHADOW, percent=20), outcomes).verdict is Verdict.BETTER


@pytest.mark.parametrize("code", [ErrorCode.INTERNAL, ErrorCode.DEADLINE_EXCEEDED])
def test_candidate_that_fails_hits_the_guard_rail_however_good_its_answers(code: ErrorCode) -> None:
    stable = ended(Arm.STABLE, around(25, 60))
    judged = judge(plan(), stable + ended(Arm.CANDIDATE, around(60, 40), codes=[code] * 20))
    assert judged.verdict is Verdict.GUARD_RAIL
    assert judged.arms.candidate.error_rate == pytest.approx(1 / 3)
    assert "33.3%" in judged.reason


def test_candidate_that_fails_always_is_found_within_a_few_requests() -> None:
    outcomes = ended(Arm.STABLE, around(25, 12)) + ended(Arm.CANDIDATE, codes=[ErrorCode.INTERNAL] * 12)
    assert judge(plan(), outcomes).verdict is Verdict.GUARD_RAIL


def test_errors_of_callers_and_of_both_arms_are_no_guard_rail() -> None:
    callers = [ErrorCode.CANCELLED, ErrorCode.INVALID_ARGUMENT] * 30
    outcomes = ended(Arm.STABLE, around(25)) + ended(Arm.CANDIDATE, around(25), codes=callers)
    assert judge(plan(), outcomes).verdict is Verdict.INCONCLUSIVE
    both = [ErrorCode.UNAVAILABLE] * 60
    outcomes = ended(Arm.STABLE, around(25), codes=both) + ended(Arm.CANDIDATE, around(25), codes=both)
    assert judge(plan(), outcomes).verdict is Verdict.INCONCLUSIVE


def test_slow_candidate_hits_the_guard_rail() -> None:
    stable = ended(Arm.STABLE, around(25, 60))
    slow = stable + ended(Arm.CANDIDATE, around(25, 40)) + ended(Arm.CANDIDATE, around(25, 20), e2e_s=0.9)
    assert judge(plan(), slow).verdict is Verdict.GUARD_RAIL
    assert judge(plan(max_latency_ratio=5.0), slow).verdict is Verdict.INCONCLUSIVE


def test_verdict_once_reached_stays_but_for_a_guard_rail() -> None:
    same = around(25)
    outcomes = ended(Arm.STABLE, same) + ended(Arm.CANDIDATE, same)
    assert judge(plan(), outcomes, Verdict.BETTER).verdict is Verdict.BETTER
    failing = outcomes + ended(Arm.CANDIDATE, codes=[ErrorCode.INTERNAL] * 100)
    assert judge(plan(), failing, Verdict.BETTER).verdict is Verdict.GUARD_RAIL
