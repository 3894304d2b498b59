"""What the serving benchmark makes of its runs; and one run, whole, on the shipped base."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.serving import Plan  # noqa: E402
from benchmarks.serving_results import ENGINE, ServingResult, SideRun  # noqa: E402


def run(side: str, turn: int, *, seconds: float = 1.0, slower_ms: float = 0.0) -> SideRun:
    return SideRun(side, turn, seconds, 100, [ms + slower_ms for ms in range(1, 101)], 0.5)


def test_headline_holds_each_round_against_the_engine_of_that_round() -> None:
    flat_out = [run(ENGINE, 0), run("http", 0, seconds=1.25), run("http", 1, seconds=4.0), run(ENGINE, 1, seconds=4.0)]
    timed = [run(ENGINE, 0), run("http", 0, slower_ms=1.0), run("http", 1, slower_ms=103.0)]
    timed.append(run(ENGINE, 1, slower_ms=100.0))
    headline = ServingResult(flat_out, timed, 5.0).headline()
    assert headline == pytest.approx({"http_over_engine": 0.9, "http_p50_added_ms": 2.0, "http_p99_added_ms": 2.0})


def test_json_has_every_run_and_no_single_latency() -> None:
    document = json.loads(json.dumps(ServingResult([run(ENGINE, 0)], [run(ENGINE, 0)], 5.0).as_json(Plan())))
    assert (document["flat_out"][0]["num_requests"], document["flat_out"][0]["tokens_per_s"]) == (100, 100.0)
    assert "latencies_ms" not in json.dumps(document)


@pytest.mark.slow
def test_all_sides_do_the_same_work(tmp_path: Path) -> None:
    figures = tmp_path / "serving.json"
    main(["serving", "--rounds", "1", "--seconds", "1", "--users", "4", "--json", str(figures)])
    document = json.loads(figures.read_text())
    sides = [ENGINE, "http", "http-stream", "grpc", "grpc-stream"]
    assert [each["side"] for each in document["flat_out"]] == sides
    assert all(each["num_requests"] >= 4 and each["tokens_per_s"] > 0 for each in document["flat_out"])
    assert document["http_over_engine"] > 0
