"""Formulas on records made by hand: the expected figures are worked out here, not by the code."""

from pathlib import Path

import pytest

from loadtest.metrics import (
    LATENCIES,
    EndToEnd,
    Goodput,
    InterTokenLatency,
    RequestThroughput,
    Slo,
    TimePerOutputToken,
    TimeToFirstToken,
    TokenThroughput,
    client_lag,
)
from loadtest.records import Outcome, RequestRecord
from loadtest.report import run_metrics

# Sent at 1.0, text at 1.2, 1.3, 1.5, ended at 1.6 with 5 tokens (one piece carried two, one none).
STREAMED = RequestRecord("a", Outcome.COMPLETED, 0.9, 1.0, 1.6, (1.2, 1.3, 1.5), 5, "stop")
WHOLE = RequestRecord("base", Outcome.COMPLETED, 2.0, 2.0, 3.0, (), 10, "length")
FAILED = RequestRecord("a", Outcome.FAILED, 3.0, 3.0, 3.5, (3.1,), error_code="INTERNAL")
DROPPED = RequestRecord("a", Outcome.DROPPED, 4.0, 4.0, 4.0, error_code="DROPPED_BY_CLIENT")
ALL = [STREAMED, WHOLE, FAILED, DROPPED]


def test_latencies_follow_their_formulas() -> None:
    assert TimeToFirstToken().values(STREAMED) == pytest.approx([200.0])
    assert InterTokenLatency().values(STREAMED) == pytest.approx([100.0, 200.0])
    assert EndToEnd().values(STREAMED) == pytest.approx([600.0])
    assert TimePerOutputToken().values(STREAMED) == pytest.approx([(600.0 - 200.0) / (5 - 1)])


def test_latencies_without_streaming_only_know_e2e() -> None:
    assert EndToEnd().values(WHOLE) == pytest.approx([1000.0])
    for latency in (TimeToFirstToken(), InterTokenLatency(), TimePerOutputToken()):
        assert list(latency.values(WHOLE)) == []
        assert latency.measure([WHOLE]) is None


def test_latency_of_failed_and_dropped_is_left_out() -> None:
    sample = EndToEnd().measure(ALL)
    assert sample is not None
    assert (sample.count, sample.mean) == (2, pytest.approx(800.0))


def test_tpot_of_one_token_is_undefined() -> None:
    assert TimePerOutputToken().values(RequestRecord("a", Outcome.COMPLETED, 0, 0, 1, (1.0,), 1)) == []


def test_rates_count_completed_only() -> None:
    assert RequestThroughput().measure(ALL, 4.0) == pytest.approx(2 / 4)
    assert TokenThroughput().measure(ALL, 4.0) == pytest.approx(15 / 4)


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        (Slo(), 2),
        (Slo(e2e_ms=700.0), 1),
        (Slo(e2e_ms=1001.0), 2),
        (Slo(ttft_ms=199.0), 1),
        (Slo(ttft_ms=201.0, tpot_ms=99.0, e2e_ms=700.0), 0),
        (Slo(ttft_ms=201.0, tpot_ms=101.0, e2e_ms=700.0), 1),
    ],
)
def test_goodput_counts_requests_within_every_bound(slo: Slo, num_good: int) -> None:
    assert Goodput(slo).measure(ALL, 4.0) == pytest.approx(num_good / 4)


def test_client_lag_is_sent_minus_scheduled() -> None:
    sample = client_lag(ALL)
    assert sample is not None
    assert sample.max == pytest.approx(100.0)


def test_metrics_page_has_every_measure_with_unit_and_formula() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    for metric in (*LATENCIES, *run_metrics(Slo())):
        assert f"| {metric.title} | {metric.unit} | {metric.formula} |" in page
