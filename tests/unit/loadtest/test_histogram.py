"""The histogram's figures against numpy's on the same samples."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from loadtest.histogram import PERCENTILES, distribution


@pytest.mark.parametrize("scale_ms", [0.01, 1.0, 50.0, 20_000.0])
def test_distribution_percentiles_are_the_samples_within_a_thousandth(scale_ms: float) -> None:
    sample = np.random.default_rng(1).lognormal(0.0, 1.0, 5000) * scale_ms
    summed_up = distribution(sample)
    assert summed_up is not None
    for name, percent in PERCENTILES.items():
        exact = np.sort(sample)[round(percent / 100 * len(sample)) - 1]
        assert getattr(summed_up, name) == pytest.approx(exact, rel=1e-3, abs=1e-4), name
    assert (summed_up.count, summed_up.mean) == (5000, pytest.approx(sample.mean()))
    assert summed_up.max == sample.max()


def test_distribution_takes_a_value_of_the_sample_rather_than_one_between() -> None:
    pair = distribution([10.0, 20.0])
    assert pair is not None
    assert (pair.p50, pair.p90) == pytest.approx((10.0, 20.0), rel=1e-3)
    assert distribution([]) is None


def test_distribution_of_nothing_but_zeros_is_near_zero() -> None:
    zeros = distribution([0.0] * 3)
    assert zeros is not None
    assert (zeros.p99, zeros.max) == (0.0, 0.0)


def test_distribution_encoded_is_read_by_the_library() -> None:
    summed_up = distribution([1.0, 2.0, 4.0], encode=True)
    assert summed_up is not None
    histogram = HdrHistogram.decode(summed_up.hdr)
    assert histogram.get_total_count() == 3
    assert histogram.get_value_at_percentile(50) == pytest.approx(2.0 * 1e4, rel=1e-3)
    assert distribution([1.0]).hdr == ""  # type: ignore[union-attr]
