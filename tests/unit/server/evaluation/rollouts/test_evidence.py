"""The sequential test: it is never fooled more often than it says, and finds what is there."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.evaluation.rollouts import evidence
from server.evaluation.rollouts.evidence import Values, is_above, is_mean_above

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)


def of(*values: float) -> Values:
    return np.array(values, np.float64)


def least_wealth(candidate: Values, stable: Values, share: float, margin: float) -> float:
    """The logarithm of the least wealth over a fine grid of bounds, written down once more and slowly."""
    least = math.inf
    for bound in np.linspace(0.0, 1.0, 401):
        upper = min(bound + margin, 1.0)
        ups, downs = [], []
        for stake in evidence._STAKES_K:
            up_stake = min(stake * (1 - share), 0.9 / max(upper, 1e-6))
            down_stake = min(stake * share, 0.9 / max(1 - bound, 1e-6))
            ups.append(sum(math.log(1 + up_stake * (value - upper)) for value in candidate))
            downs.append(sum(math.log(1 + down_stake * (bound - value)) for value in stable))
        together = np.logaddexp.reduce(np.add(ups, downs)) - math.log(len(ups))
        apart = np.logaddexp.reduce(ups) + np.logaddexp.reduce(downs) - 2 * math.log(len(ups))
        least = min(least, float(np.logaddexp(together, apart)) - math.log(2))
    return least


@given(VALUES, VALUES, st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.1]))
@settings(max_examples=15, deadline=None)
def test_proof_is_there_only_where_the_least_wealth_of_all_bounds_is_high_enough(
    candidate: Values, stable: Values, share: float, margin: float
) -> None:
    least = least_wealth(candidate, stable, share, margin)
    for error_rate in (0.5, 0.05, 0.001):
        found = is_above(candidate, stable, share=share, margin=margin, error_rate=error_rate)
        if abs(least + math.log(error_rate)) > 0.2:  # what a finer grid might still find
            assert found == (least > -math.log(error_rate))


@pytest.mark.parametrize("law", ["beta", "zero or one", "rare successes", "constant"])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_equal_versions_are_told_apart_as_seldom_as_promised(law: str, share: float) -> None:
    draws = np.random.default_rng(5)
    num_rollouts, num_wrong = 200, 0
    for _ in range(num_rollouts):
        values = {
            "beta": draws.beta(3.0, 9.0, 400),
            "zero or one": draws.integers(0, 2, 400).astype(float),
            "rare successes": (draws.random(400) < 0.02).astype(float),
            "constant": np.full(400, 0.25),
        }[law]
        is_candidate = draws.random(400) < share
        for num_seen in range(20, 401, 20):
            candidate = values[:num_seen][is_candidate[:num_seen]]
            stable = values[:num_seen][~is_candidate[:num_seen]]
            if is_above(candidate, stable, share=share, error_rate=0.05):
                num_wrong += 1
                break
    assert num_wrong <= 0.05 * num_rollouts


def test_worse_candidate_is_found_better_as_seldom_as_promised_whatever_the_margin() -> None:
    draws = np.random.default_rng(6)
    num_wrong = sum(
        is_above(draws.beta(4.0, 6.0, 300), draws.beta(3.0, 7.0, 300), share=0.5, margin=0.1, error_rate=0.05)
        for _ in range(200)
    )
    assert num_wrong <= 10


def test_difference_is_found_and_in_its_own_direction_only() -> None:
    draws = np.random.default_rng(7)
    high, low = draws.beta(4.0, 8.0, 400), draws.beta(3.0, 9.0, 400)
    assert is_above(high, low, share=0.5, error_rate=0.025)
    assert not is_above(low, high, share=0.5, error_rate=0.025)
    assert not is_above(high, low, share=0.5, margin=0.2, error_rate=0.025)


def test_order_of_the_values_is_of_no_consequence() -> None:
    draws = np.random.default_rng(8)
    for size in range(40, 120, 4):
        high, low = draws.beta(4.0, 8.0, size), draws.beta(3.0, 9.0, size)
        found = is_above(high, low, share=0.5, error_rate=0.05)
        assert found == is_above(np.sort(high), np.sort(low)[::-1], share=0.5, error_rate=0.05)


def test_nothing_is_proven_by_no_values() -> None:
    assert not is_above(of(), of(0.0), share=0.5, error_rate=0.5)
    assert not is_above(of(1.0), of(), share=0.5, error_rate=0.5)
    assert not is_mean_above(of(), 0.0, error_rate=0.5)


def test_one_outlier_does_not_end_the_game() -> None:
    high, low = np.full(60, 1.0), np.full(60, 0.0)
    high[0], low[0] = 0.0, 1.0
    assert is_above(high, low, share=0.5, error_rate=0.001)


def test_mean_is_above_a_bound_only_when_it_is() -> None:
    draws = np.random.default_rng(9)
    num_wrong = 0
    for _ in range(200):
        values = (draws.random(600) < 0.05).astype(float)
        num_wrong += any(is_mean_above(values[:num_seen], 0.05, error_rate=0.01) for num_seen in range(20, 601, 20))
    assert num_wrong <= 4
    assert is_mean_above((draws.random(100) < 0.4).astype(float), 0.05, error_rate=0.01)


def test_bound_far_from_the_means_is_looked_at_as_well() -> None:
    # Dealt evenly where one in ten was planned: at the pooled mean all is won, and elsewhere hardly anything.
    candidate = of(0.7, 0.8, 0.9, 0.5, 0.6, 0.4, 0.5, 0.5, 0.7, 0.8, 0.7, 0.5, 0.6, 0.3, 0.5, 0.7, 0.7)
    stable = of(0.2, 0.1, 0.3, 0.1, 0.1, 0.2, 0.4, 0.3, 0.4, 0.0, 0.2, 0.3, 0.3)
    assert least_wealth(candidate, stable, 0.1, 0.0) < -math.log(0.25)
    assert not is_above(candidate, stable, share=0.1, error_rate=0.05)
    assert is_above(candidate, stable, share=0.5, error_rate=0.05)
