"""What the overload benchmark makes of its runs; and one run, whole, on the shipped base."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.overload import Plan  # noqa: E402
from benchmarks.overload_results import FloodRun, LoadRun, OverloadResult, plot  # noqa: E402
from loadtest.records import Outcome, RequestRecord  # noqa: E402


def answered(took_s: float, sent_s: float = 1.0) -> RequestRecord:
    return RequestRecord("base", Outcome.COMPLETED, sent_s, sent_s, sent_s + took_s)


def refused(took_s: float, code: str) -> RequestRecord:
    return RequestRecord("base", Outcome.FAILED, 1.0, 1.0, 1.0 + took_s, error_code=code)


def load(protocol: str, share: float, goodput: float) -> LoadRun:
    return LoadRun.of(protocol, share, goodput, [answered(0.1)])


def flood(protocol: str, factor: float) -> FloodRun:
    alone = [answered(0.1)] * 100
    beside = [answered(0.1 * factor)] * 99 + [refused(0.1, "RESOURCE_EXHAUSTED")]
    return FloodRun.of(protocol, 0, alone=alone, beside=beside, flood=[answered(1.0)] * 20, seconds=10.0)


def test_headline_holds_the_highest_load_against_the_peak_and_each_round_against_alone() -> None:
    loads = [load("http", 0.5, 20.0), load("http", 3.0, 36.0), load("http", 1.0, 40.0), load("grpc", 3.0, 10.0)]
    floods = [flood("http", 1.2), flood("http", 1.4), flood("http", 3.0)]
    assert OverloadResult(40.0, 900.0, loads, floods).headline() == pytest.approx(
        {
            "http_goodput_over_peak": 0.9,
            "grpc_goodput_over_peak": 1.0,
            "http_p50_beside_over_alone": 1.4,
            "http_p99_beside_over_alone": 1.4,
        }
    )


def test_run_tells_answers_refusals_and_other_failures_apart() -> None:
    records = [answered(0.2), refused(0.01, "RESOURCE_EXHAUSTED"), refused(0.03, "DEADLINE_EXCEEDED")]
    run = LoadRun.of("http", 2.0, 1.0, [*records, refused(5.0, "TIMEOUT")])
    assert (run.num_sent, run.e2e_ms, run.refused_ms[0]) == (4, pytest.approx((200, 200)), pytest.approx(20))
    assert run.errors == {"RESOURCE_EXHAUSTED": 1, "DEADLINE_EXCEEDED": 1, "TIMEOUT": 1}
    assert "goodput 1.0/s" in run.line()


def test_caller_beside_a_flood_counts_what_failed_and_what_the_flood_got() -> None:
    run = flood("grpc", 1.5)
    assert (run.num_light, run.num_failed, run.flood_per_s) == (100, 1, 2.0)
    assert run.ratios == pytest.approx((1.5, 1.5))


def test_json_and_picture_have_every_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws a picture")
    result = OverloadResult(40.0, 900.0, [load("http", 1.0, 40.0)], [flood("http", 1.2)])
    document = json.loads(json.dumps(result.as_json(Plan())))
    assert (len(document["loads"]), len(document["floods"]), document["plan"]["num_users"]) == (1, 1, 32)
    plot(result, tmp_path / "overload.png")
    assert (tmp_path / "overload.png").stat().st_size > 1000


@pytest.mark.slow
def test_caller_is_measured_beside_a_flood_on_the_shipped_base(tmp_path: Path) -> None:
    figures = tmp_path / "overload.json"
    main(["overload", "--quick", "--seconds", "5", "--part", "flood", "--json", str(figures)])
    document = json.loads(figures.read_text())
    assert document["capacity"] > 0
    assert [(each["protocol"], each["num_light"] > 0) for each in document["floods"]] == [
        ("http", True),
        ("grpc", True),
    ]
