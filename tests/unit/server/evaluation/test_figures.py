from collections.abc import Mapping

import numpy as np
import pytest

from adapters.scoring.bootstrap import Bootstrap, mean_interval
from server.evaluation.figures import PROMPT_TOKENS, Examined, Period, Totals, evaluate

NOW_S = 1_000_030.0
PERIOD = Period(NOW_S, 100.0, 3)
TOTALS = Totals(9, 1, 5)


def row(
    age_s: float = 0.0,
    scores: Mapping[str, float] | None = None,
    signals: Mapping[str, float] | None = None,
    code: str = "OK",
    num_prompt_tokens: int = 10,
) -> Examined:
    return Examined(code, NOW_S - age_s, num_prompt_tokens, signals or {}, scores)


def test_figures_of_a_metric_are_its_mean_interval_and_percentiles() -> None:
    values = [10.0, 20.0, 30.0, 40.0, 50.0]
    found = evaluate("a:1", TOTALS, [row(scores={"rouge1": value}) for value in values], PERIOD)
    figures = found.metrics["rouge1"]
    interval = mean_interval(np.array(values), Bootstrap(num_resamples=200))
    assert (figures.count, figures.mean, figures.p50) == (5, 30.0, 30.0)
    assert (figures.low, figures.high) == (interval.low, interval.high)
    assert figures.p10 == pytest.approx(14.0)
    assert figures.p90 == pytest.approx(46.0)
    assert found.means == {"rouge1": 30.0}
    assert found.totals == TOTALS


def test_metrics_count_only_the_requests_that_have_them() -> None:
    rows = [row(scores={"rouge1": 1.0}), row(scores={"rouge1": 3.0, "bleu": 8.0}), row(signals={"copy_rate": 5.0})]
    found = evaluate("a:1", TOTALS, rows, PERIOD)
    assert {name: (each.count, each.mean) for name, each in found.metrics.items()} == {
        "bleu": (1, 8.0),
        "copy_rate": (1, 5.0),
        "rouge1": (2, 2.0),
    }
    assert set(found.means) == {"bleu", "rouge1"}


def test_windows_are_multiples_of_their_length_up_to_now() -> None:
    rows = [row(0.0, {"rouge1": 10.0}), row(29.0, {"rouge1": 20.0}), row(31.0), row(131.0, {"rouge1": 7.0}), row(999.0)]
    windows = evaluate("a:1", TOTALS, rows, PERIOD).windows
    assert [window.start_s for window in windows] == [999_800.0, 999_900.0, 1_000_000.0]
    assert [window.end_s for window in windows] == [999_900.0, 1_000_000.0, 1_000_100.0]
    assert [(window.num_finished, window.num_scored, window.means) for window in windows] == [
        (1, 1, {"rouge1": 7.0}),
        (1, 0, {}),
        (2, 2, {"rouge1": 15.0}),
    ]
    assert 10.0 <= windows[2].low["rouge1"] < 15.0 < windows[2].high["rouge1"] <= 20.0


def test_drift_compares_the_last_window_with_what_was_before() -> None:
    before = [row(200.0 + each, num_prompt_tokens=10 + each % 5, signals={"copy_rate": each % 7}) for each in range(60)]
    now = [row(each, num_prompt_tokens=40 + each % 5, signals={"copy_rate": each % 7}) for each in range(42)]
    drift = evaluate("a:1", TOTALS, before + now, PERIOD).drift
    assert drift[PROMPT_TOKENS].drifted
    assert drift[PROMPT_TOKENS].statistic == 1.0
    assert not drift["copy_rate"].drifted


def test_drift_is_not_told_of_few_requests_or_of_failed_ones() -> None:
    before = [row(200.0) for _ in range(60)]
    assert evaluate("a:1", TOTALS, before + [row() for _ in range(29)], PERIOD).drift == {}
    failed = [row(code="INTERNAL") for _ in range(40)]
    assert evaluate("a:1", TOTALS, before + failed, PERIOD).drift == {}


def test_combination_without_any_request_left_has_empty_figures() -> None:
    found = evaluate("a:1", Totals(0, 0, 0), [], PERIOD)
    assert (found.means, found.metrics, found.drift) == ({}, {}, {})
    assert [window.num_finished for window in found.windows] == [0, 0, 0]
