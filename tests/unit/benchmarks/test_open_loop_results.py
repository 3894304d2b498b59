"""The open loop's figures, from runs whose outcome is known."""

import pytest

from benchmarks.latency import Summary, answered, summarize
from benchmarks.open_loop_results import OURS, PEFT, Results, TimedRun, sustained


def served(num_tokens: int, *, in_s: float) -> Summary:
    return summarize([answered(0.0, [in_s] * num_tokens, num_tokens)])


def timed(rate: float, summary: Summary, *, keeps_up: bool) -> TimedRun:
    return TimedRun(rate, keeps_up, summary, (summary.p50_ms("e2e"),))


def test_sustained_is_the_largest_rate_kept_up_with_not_the_last_tried() -> None:
    runs = [timed(rate, served(1, in_s=1.0), keeps_up=rate < 3) for rate in (1.0, 2.0, 3.0)]

    assert sustained(runs) == runs[1]
    assert sustained(runs[2:]) is None


def test_headline_compares_each_side_at_what_it_sustains() -> None:
    slow, fast = timed(1.0, served(10, in_s=4.0), keeps_up=True), timed(6.0, served(60, in_s=2.0), keeps_up=True)
    at_once = {OURS: [served(80, in_s=1.0)], PEFT: [served(20, in_s=1.0)]}
    same_rate = {OURS: timed(1.0, served(10, in_s=1.0), keeps_up=True), PEFT: slow}

    figures = Results(16, at_once, {OURS: [fast], PEFT: [slow]}, same_rate).headline()

    assert figures == pytest.approx(
        {
            "saturated_ours_over_peft": 4.0,
            "sustained_ours_over_peft": 30 / 2.5,
            "ttft_p99_ours_over_peft_at_own_rates": 0.5,
            "e2e_p99_ours_over_peft_at_own_rates": 0.5,
            "ttft_p99_ours_over_peft_at_same_rate": 0.25,
            "e2e_p99_ours_over_peft_at_same_rate": 0.25,
        }
    )


def test_headline_of_a_side_that_never_kept_up_claims_no_sustained_figure() -> None:
    run = timed(1.0, served(10, in_s=4.0), keeps_up=True)
    behind = timed(1.0, served(10, in_s=4.0), keeps_up=False)
    at_once = {OURS: [served(1, in_s=1.0)], PEFT: [served(1, in_s=1.0)]}

    figures = Results(8, at_once, {OURS: [run], PEFT: [behind]}, {OURS: run, PEFT: behind}).headline()

    assert "sustained_ours_over_peft" not in figures
