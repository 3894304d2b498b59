"""Ratios of made-up runs, where the truth is known."""

import numpy as np
import pytest

from loadtest.comparison import Comparison, Side, compare
from loadtest.metrics import Slo
from loadtest.records import Outcome, RequestRecord
from loadtest.report import summarize_run


def _side(title: str, scale: float, seed: int, count: int = 400, **config: object) -> Side:
    draws = np.random.default_rng(seed)
    latencies = draws.lognormal(-2.0, 0.3, count) * scale
    records = [
        RequestRecord("base", Outcome.COMPLETED, i / 20, i / 20, i / 20 + float(e2e), (i / 20 + float(e2e) / 2,), 8)
        for i, e2e in enumerate(latencies)
    ]
    slo = Slo(e2e_ms=200.0)
    return Side(title, summarize_run(records, slo, config), records, slo)


def _row(compared: Comparison, title: str):
    return next(row for row in compared.rows if row.title == title)


def test_compare_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    ratio = 1.5
    num_held = {"e2e p50": 0, "e2e p90": 0}
    for pair in range(24):
        compared = compare(_side("one", 1.0, 2 * pair, 150), _side("other", ratio, 2 * pair + 1, 150))
        for title in num_held:
            row = _row(compared, title)
            num_held[title] += row.low <= ratio <= row.high
    # 23 of 24 are to be expected; 18 or fewer come by chance less than once in a thousand.
    assert all(held >= 19 for held in num_held.values()), num_held


def test_compare_slower_run_is_told_in_ratio_and_goodput() -> None:
    compared = compare(_side("one", 1.0, 1), _side("other", 1.5, 2))
    row = _row(compared, "e2e p50")
    assert (row.ratio, row.low > 1.2) == (pytest.approx(1.5, rel=0.1), True)
    assert row.second / row.first == pytest.approx(row.ratio)
    assert _row(compared, "goodput").high < 1.0


def test_compare_interval_narrows_with_more_requests() -> None:
    def width(count: int) -> float:
        row = _row(compare(_side("a", 1.0, 1, count), _side("b", 1.0, 2, count)), "e2e p50")
        return float(row.high - row.low)

    # Nine times as many requests, a third of the width.
    assert width(3600) == pytest.approx(width(400) / 3, rel=0.4)


def test_compare_tells_what_was_asked_differently_but_not_the_addresses() -> None:
    first = _side("one", 1.0, 1, target={"address": "a:1", "stream": True}, same=1)
    second = _side("other", 1.0, 1, target={"address": "b:2", "stream": False}, same=1)
    assert compare(first, second).differences == {"target.stream": (True, False)}


def test_compare_nothing_to_divide_by_has_no_ratio() -> None:
    failed = [RequestRecord("base", Outcome.FAILED, 0.0, 0.0, 1.0, error_code="INTERNAL")]
    nothing = Side("none", summarize_run(failed, Slo(), {}), failed, Slo())
    compared = compare(nothing, _side("other", 1.0, 1))
    assert [row.title for row in compared.rows] == ["throughput", "tokens", "goodput"]
    assert _row(compared, "throughput").ratio is None
    assert compared.errors == ({"INTERNAL": 1}, {})
