"""Intervals: seeded, around the mean, as wide as theory says, and narrow where pairing helps."""

import numpy as np
import pytest

from adapters.scoring.bootstrap import (
    Bootstrap,
    difference_interval,
    mean_interval,
    mean_intervals,
    seeds_interval,
    sums_interval,
)

DRAW = np.random.default_rng(5)


def test_mean_interval_same_seed_gives_the_same_and_another_seed_another() -> None:
    values = DRAW.normal(size=50)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, Bootstrap(seed=14)) != mean_interval(values)


def test_mean_interval_is_as_wide_as_the_normal_law_says() -> None:
    values = DRAW.normal(30.0, 4.0, size=400)
    found = mean_interval(values, Bootstrap(num_resamples=4000))
    half = 1.96 * values.std() / 400**0.5
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_mean_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(200):
        found = mean_interval(DRAW.normal(size=80), Bootstrap(num_resamples=300, level=0.9, seed=trial))
        covered += found.low <= 0.0 <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_paired_differences_see_what_unpaired_examples_hide() -> None:
    hardness = DRAW.normal(30.0, 10.0, size=100)
    first, second = hardness + 1.0 + DRAW.normal(0.0, 0.5, size=100), hardness
    paired, unpaired = mean_interval(first - second), difference_interval(first, second)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.is_clear
    assert not unpaired.is_clear


def test_difference_interval_takes_sides_of_different_sizes() -> None:
    found = difference_interval(np.full(7, 5.0), np.full(3, 2.0))
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_seeds_interval_holds_the_chance_of_runs_and_of_examples() -> None:
    runs, examples = np.array([[-3.0], [0.0], [3.0]]), DRAW.normal(0.0, 3.0, size=(1, 60))
    both = seeds_interval(runs + examples)
    alone = mean_interval(examples[0])
    assert both.value == pytest.approx(examples.mean())
    assert both.high - both.low > 1.5 * (alone.high - alone.low)
    one_run = seeds_interval(examples)
    assert one_run.high - one_run.low == pytest.approx(alone.high - alone.low, rel=0.2)


def test_sums_interval_of_means_equals_mean_interval() -> None:
    values = DRAW.normal(size=30)
    rows = np.column_stack([values, np.ones(30)])
    found, expected = sums_interval(rows, lambda sums: sums[0] / sums[1]), mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_mean_intervals_are_those_of_each_column_alone() -> None:
    values = DRAW.normal(size=(40, 3))
    for found, column in zip(mean_intervals(values), values.T, strict=True):
        expected = mean_interval(column)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_intervals_of_nothing_are_refused() -> None:
    empty = np.zeros(0)
    for call in (
        lambda: mean_interval(empty),
        lambda: mean_intervals(np.ones(3)),
        lambda: mean_intervals(np.zeros((0, 2))),
        lambda: difference_interval(empty, np.ones(2)),
        lambda: seeds_interval(np.ones(3)),
        lambda: sums_interval(np.zeros((0, 2)), float),
    ):
        with pytest.raises(ValueError, match=r"no examples|table"):
            call()


@pytest.mark.parametrize("options", [{"num_resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_of_senseless_options_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="level"):
        Bootstrap(**options)
