import statistics
from itertools import islice, pairwise

import pytest

from loadtest.arrivals import poisson_arrivals, schedule


def test_arrivals_same_seed_gives_same_times() -> None:
    assert schedule(5.0, 7, 10.0, None) == schedule(5.0, 7, 10.0, None)
    assert schedule(5.0, 7, 10.0, None) != schedule(5.0, 8, 10.0, None)


def test_arrivals_gaps_are_exponential() -> None:
    times = [0.0, *islice(poisson_arrivals(rate=20.0, seed=1), 20_000)]
    gaps = [after - before for before, after in pairwise(times)]
    # An exponential's mean equals its standard deviation; a share of exp(-1) lies above it.
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap > 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)


def test_schedule_both_limits_keeps_the_tighter() -> None:
    assert len(schedule(100.0, 0, 1000.0, 12)) == 12
    assert max(schedule(100.0, 0, 0.5, 10_000)) < 0.5


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_arrivals_bad_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        schedule(rate, 0, 1.0, None)


def test_schedule_without_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="duration or a number"):
        schedule(1.0, 0, None, None)
