import numpy as np
import pytest

from server.evaluation.drift import drift_between


def test_statistic_is_the_greatest_distance_of_the_distributions() -> None:
    assert drift_between([1, 2, 3, 4], [3, 4, 5, 6]).statistic == pytest.approx(0.5)
    assert drift_between([1, 2], [1, 2]).statistic == 0.0
    assert drift_between([1, 2], [3, 4]).statistic == 1.0


@pytest.mark.parametrize(
    ("scaled", "tail"), [(0.828, 0.5), (1.0727, 0.2), (1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01)]
)
def test_p_value_is_kolmogorovs(scaled: float, tail: float) -> None:
    # Two samples so large that the correction is nothing, shifted so that the statistic is what is asked for.
    num = 400_000
    shift = round(scaled / np.sqrt(num / 2) * num)
    drift = drift_between(np.arange(num).tolist(), (np.arange(num) + shift).tolist())
    assert drift.p_value == pytest.approx(tail, rel=0.02)


def test_false_alarms_are_no_more_than_promised() -> None:
    draws = np.random.default_rng(7)
    p_values = [
        drift_between(draws.normal(size=300).tolist(), draws.normal(size=60).tolist()).p_value for _ in range(2000)
    ]
    assert sum(value < 0.05 for value in p_values) / 2000 == pytest.approx(0.05, abs=0.02)


def test_drift_must_be_large_as_well_as_sure() -> None:
    draws = np.random.default_rng(8)
    before = draws.normal(size=50_000).tolist()
    slightly = drift_between(before, draws.normal(0.1, size=50_000).tolist())
    assert slightly.p_value < 1e-6
    assert not slightly.drifted
    assert drift_between(before[:300], draws.normal(1.0, size=300).tolist()).drifted
    assert not drift_between(before[:300], before[300:600]).drifted


def test_same_values_are_no_drift_and_no_values_are_refused() -> None:
    assert drift_between([0.0] * 40, [0.0] * 40).p_value == 1.0
    with pytest.raises(ValueError, match="need values"):
        drift_between([], [1.0])
