"""What the feedback benchmark makes of its runs; and one run, whole, on the fake engine."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("psutil", reason="reads the server's processor time")

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.feedback import ALONE, BESIDE, FeedbackResult, Plan, Run, add_command, plan_of  # noqa: E402
from benchmarks.feedback_sender import FeedbackOutcome  # noqa: E402

SENT = FeedbackOutcome(num_sent=200, codes={"OK": 190, "RESOURCE_EXHAUSTED": 10}, latencies_ms=[5.0] * 190)


def run(side: str, turn: int, slower: float, cpu_s: float) -> Run:
    latencies_ms = [slower * ms for ms in range(1, 101)]
    return Run(side, turn, latencies_ms, 1, SENT if side == BESIDE else None, 10 if side == BESIDE else 0, cpu_s)


@pytest.fixture
def result() -> FeedbackResult:
    runs = [run(ALONE, 0, 1.0, 3.0), run(BESIDE, 0, 1.1, 3.4), run(BESIDE, 1, 1.1, 5.6), run(ALONE, 1, 1.0, 5.0)]
    return FeedbackResult(Plan(seconds=2.0), 20.0, 12.0, runs)


def test_headline_has_the_ratio_of_all_rounds_with_its_interval(result: FeedbackResult) -> None:
    headline = result.headline()
    assert (headline["p50_ratio"], headline["p99_ratio"]) == pytest.approx((1.1, 1.1))
    assert headline["p99_ms_alone"] == pytest.approx(99.01, abs=1.0)
    assert headline["p50_ratio_low"] < 1.1 < headline["p50_ratio_high"]
    assert headline["server_cpu_ms_per_reference"] == pytest.approx(2.5)
    assert (headline["num_failed"], headline["num_scored"], headline["num_dropped"]) == (4, 380, 20)
    assert headline["references_per_s"] == 100.0


def test_json_has_every_run_and_no_single_latency(result: FeedbackResult) -> None:
    document = json.loads(json.dumps(result.as_json()))
    assert [(each["side"], each["turn"]) for each in document["runs"]] == [
        (ALONE, 0),
        (BESIDE, 0),
        (BESIDE, 1),
        (ALONE, 1),
    ]
    assert document["runs"][1]["feedback"]["codes"] == SENT.codes
    assert "latencies_ms" not in json.dumps(document)


def test_headline_without_any_scores_is_still_told(result: FeedbackResult) -> None:
    silent = replace(SENT, codes={"RESOURCE_EXHAUSTED": 200}, latencies_ms=[])
    runs = [replace(each, feedback=silent if each.feedback else None) for each in result.runs]
    headline = replace(result, runs=runs).headline()
    assert (headline["num_scored"], headline["feedback_p99_ms"]) == (0, 0.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Plan()),
        (["--quick", "--rounds", "3"], replace(Plan(), seconds=8.0, num_rounds=3)),
        (["--engine", "fake", "--seed", "0"], replace(Plan(), engine="fake", mix="base")),
    ],
)
def test_plan_is_what_the_command_line_asks_for(options: list[str], expected: Plan) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    assert plan_of(parser.parse_args(["feedback", *options])) == expected


@pytest.mark.slow
def test_feedback_benchmark_sends_what_it_says_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "feedback.json"
    options = ["--engine", "fake", "--seconds", "2", "--rounds", "1", "--rate", "5", "--feedback-rate", "20"]

    main(["feedback", *options, "--json", str(file)])

    figures = json.loads(file.read_text())
    alone, beside = figures["runs"]
    assert (alone["side"], alone["feedback"]) == (ALONE, None)
    assert beside["feedback"]["num_sent"] == figures["num_references"] == 40
    assert beside["feedback"]["codes"] == {"OK": 40}
    assert alone["num_completed"] == beside["num_completed"] > 0
    assert figures["num_failed"] == figures["num_dropped"] == 0
