"""Every law of lengths against its formula, with fixed seeds."""

import math
import statistics

import pytest
from pydantic import ValidationError

from loadtest.arrivals import generator
from loadtest.lengths import Fixed, FromData, Lognormal, UniformLength

COUNT = 40_000


def _draw(law: object) -> list[int]:
    return law.draw(generator("input", 5), COUNT)  # type: ignore[attr-defined,no-any-return]


def test_fixed_lengths_are_all_alike_and_those_of_the_data_unknown() -> None:
    assert set(_draw(Fixed(12))) == {12}
    assert FromData().draw(generator("input", 5), 3) is None


def test_uniform_lengths_have_both_ends_and_the_mean_and_spread() -> None:
    lengths = _draw(UniformLength(8, 512))
    assert (min(lengths), max(lengths)) == (8, 512)
    assert statistics.fmean(lengths) == pytest.approx((8 + 512) / 2, rel=0.02)
    assert statistics.stdev(lengths) == pytest.approx(math.sqrt((505**2 - 1) / 12), rel=0.02)


def test_lognormal_lengths_have_the_median_and_the_mean() -> None:
    lengths = _draw(Lognormal(median=200, sigma=0.5))
    assert statistics.median(lengths) == pytest.approx(200, rel=0.02)
    assert statistics.fmean(lengths) == pytest.approx(200 * math.exp(0.5**2 / 2), rel=0.02)
    assert statistics.stdev(map(math.log, lengths)) == pytest.approx(0.5, rel=0.02)


def test_lognormal_lengths_stay_within_their_ends() -> None:
    lengths = _draw(Lognormal(median=50, sigma=2.0, low=10, high=100))
    assert (min(lengths), max(lengths)) == (10, 100)


@pytest.mark.parametrize(
    ("law", "fields"),
    [
        (Fixed, {"value": 0}),
        (UniformLength, {"low": 5, "high": 4}),
        (UniformLength, {"low": 0, "high": 4}),
        (Lognormal, {"median": 5, "sigma": 0}),
        (Lognormal, {"median": 500, "sigma": 1, "high": 100}),
    ],
)
def test_lengths_impossible_are_refused(law: type, fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        law(**fields)
