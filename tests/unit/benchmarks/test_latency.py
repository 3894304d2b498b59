"""A served trace summed up: what counts as a token, a wait, a failure."""

import math

import numpy as np
import pytest

from benchmarks.latency import answered, summarize


def test_summary_counts_time_from_the_arrival_in_the_trace() -> None:
    summary = summarize([answered(1.0, [1.5, 1.6, 1.8], 3), answered(2.0, [4.0], 1)])

    assert summary.p50_ms("ttft") == pytest.approx(500, rel=1e-3)
    assert summary.p99_ms("e2e") == pytest.approx(2000)
    assert summary.latencies_ms["itl"]["max"] == pytest.approx(200)
    assert (summary.duration_s, summary.backlog_s) == (4.0, 2.0)
    assert summary.tokens_per_s == pytest.approx(4 / 4.0)


def test_summary_quantiles_are_those_of_numpy_within_a_thousandth() -> None:
    ends_s = np.random.default_rng(0).exponential(2.0, 300)

    summary = summarize([answered(0.0, [end_s], 1) for end_s in ends_s])

    found = summary.latencies_ms["e2e"]
    expected = np.percentile(ends_s * 1e3, [50, 90, 99], method="inverted_cdf")
    assert [found["p50"], found["p90"], found["p99"]] == pytest.approx(expected, rel=1e-3)
    assert all(isinstance(value, float | int) for value in found.values())


def test_summary_of_tokens_that_come_together_has_no_wait_between_them() -> None:
    summary = summarize([answered(0.0, [2.0, 2.0, 2.0], 3)])

    assert summary.latencies_ms["itl"] is None
    assert math.isnan(summary.p99_ms("itl"))
    assert summary.p50_ms("ttft") == summary.p50_ms("e2e") == 2000
    assert summary.num_tokens == 3


def test_summary_of_an_answer_too_short_counts_it_as_failed_and_none_of_its_tokens() -> None:
    summary = summarize([answered(0.0, [1.0, 2.0], 3), answered(0.0, [1.0], 1)])

    assert (summary.num_requests, summary.num_failed, summary.num_tokens) == (2, 1, 1)
    assert summary.latencies_ms["e2e"]["count"] == 1
