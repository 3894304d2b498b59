"""The soak: what it calls flat, how it deals a scenario out, and one of it against the fake server."""

import asyncio
import json
import math
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.arrivals import Poisson
from loadtest.clients.target import Protocol
from loadtest.metrics import Slo
from loadtest.scenario import Scenario
from loadtest.scenario_file import load_scenario
from loadtest.soak.__main__ import app
from loadtest.soak.processes import ProcessGoneError, ProcessSample, ProcessTree
from loadtest.soak.run import Ended
from loadtest.soak.steadiness import Limit, trend
from loadtest.soak.traffic import Watched, lanes_of
from loadtest.soak.verdict import LIMITS, MIB, RULE, trends_of, windows_of

TIMES = [2.0 * number for number in range(300)]
LIMIT = Limit(share=0.05, amount=1.0)
HERE = Watched("127.0.0.1:1", "127.0.0.1:2", os.getpid())


@pytest.mark.parametrize(
    ("values", "is_flat"),
    [
        pytest.param([100.0 + 10 * math.sin(time_s) for time_s in TIMES], True, id="to and fro"),
        pytest.param([100 + 0.2 * time_s for time_s in TIMES], False, id="a steady leak"),
        pytest.param([min(100 + time_s, 280.0) for time_s in TIMES], True, id="caches that fill up"),
        pytest.param([300 - 0.2 * time_s for time_s in TIMES], True, id="falling"),
        pytest.param([100 + (500 if number % 50 == 49 else 0) for number in range(300)], True, id="a few outliers"),
        pytest.param([0.5 + time_s / 1000 for time_s in TIMES], True, id="next to nothing"),
    ],
)
def test_trend_of_made_up_samples_is_flat_unless_they_go_on_growing(values: list[float], is_flat: bool) -> None:
    assert trend("figure", "", TIMES, values, LIMIT).is_flat is is_flat


def test_trend_says_what_a_figure_grew_by_over_the_last_two_thirds() -> None:
    found = trend("figure", "MiB", TIMES, [1000 + time_s for time_s in TIMES], LIMIT)
    assert found.growth == pytest.approx(TIMES[-1] * 2 / 3, rel=0.01)
    assert found.median == pytest.approx(1000 + TIMES[-1] * 2 / 3, rel=0.01)
    assert found.most_growth == pytest.approx(0.05 * found.median)


def test_trend_of_too_few_samples_is_not_flat() -> None:
    assert not trend("figure", "", TIMES[:6], [1.0] * 6, LIMIT).is_flat
    assert not trend("figure", "", [], [], LIMIT).is_flat


def test_memory_that_grows_is_judged_not_flat_and_the_rest_flat() -> None:
    samples = [ProcessSample(at_s, int((300 + at_s) * MIB), 60, 20, 3) for at_s in TIMES]
    windows = windows_of([Ended(at_s, 40.0, "") for at_s in [0.1 * number for number in range(6000)]])
    found = {each.title: each.is_flat for each in trends_of(samples, windows)}
    assert found == {title: title != "resident memory" for title in LIMITS}


def test_threads_and_file_handles_that_grow_are_judged_not_flat() -> None:
    samples = [ProcessSample(at_s, 300 * MIB, 60 + int(at_s / 10), 20 + int(at_s / 20), 3) for at_s in TIMES]
    found = {each.title: each.is_flat for each in trends_of(samples, [])}
    assert not found["file handles"]
    assert not found["threads"]
    assert found["resident memory"]


def test_windows_leave_failed_requests_and_thin_windows_out() -> None:
    ended = [Ended(1.0, 10.0, "")] * 9 + [Ended(1.0, None, "INTERNAL")] + [Ended(3.0, 50.0, "")] * 4
    assert [(window.at_s, window.p50_ms) for window in windows_of(ended)] == [(1.0, 10.0)]
    assert windows_of([]) == []


def test_lanes_speak_both_protocols_whole_and_streamed_and_one_has_the_operator() -> None:
    scenario = load_scenario("soak", [("slo.ttft_ms", 500)])
    lanes = list(lanes_of(scenario, HERE).values())
    assert [(lane.target.protocol, lane.target.stream) for lane in lanes] == [
        (Protocol.HTTP, True),
        (Protocol.HTTP, False),
        (Protocol.GRPC, True),
        (Protocol.GRPC, False),
    ]
    assert {lane.target.address for lane in lanes} == {HERE.http, HERE.grpc}
    assert isinstance(scenario.arrivals, Poisson)
    assert sum(lane.arrivals.rate for lane in lanes) == scenario.arrivals.rate  # type: ignore[union-attr]
    assert [lane.churn is not None for lane in lanes] == [True, False, False, False]
    assert len({lane.seed for lane in lanes}) == 4
    assert [lane.slo for lane in lanes] == [Slo(ttft_ms=500.0), Slo(), Slo(ttft_ms=500.0), Slo()]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([("arrivals", {"kind": "closed", "num_users": 4})], "a rate"),
        ([("duration_s", None), ("num_requests", 5)], "duration_s"),
    ],
)
def test_lanes_of_a_scenario_that_cannot_be_dealt_out_are_refused(
    overrides: list[tuple[str, object]], reason: str
) -> None:
    scenario: Scenario = load_scenario("soak", overrides)
    with pytest.raises(ValueError, match=reason):
        lanes_of(scenario, HERE)


def test_process_tree_tells_what_this_process_holds(tmp_path: Path) -> None:
    tree = ProcessTree(os.getpid())
    before = tree.sample(0.0)
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        after = tree.sample(1.0)
    assert after.num_fds == before.num_fds + 2
    assert before.rss_bytes > 10 * MIB
    assert before.num_threads >= 1


def test_process_that_is_not_there_is_told() -> None:
    with pytest.raises(ProcessGoneError, match="cannot look at process"):
        ProcessTree(2**22 + 1)


async def test_soak_of_a_moment_against_the_fake_server_keeps_what_it_saw(server, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps({"http": server.http, "grpc": server.grpc, "pid": os.getpid()}))
    out = tmp_path / "out"
    arguments = [
        *("--duration", "1.5", "--every", "0.1", "--ready-file", str(ready), "--out", str(out)),
        *("--set", "arrivals.rate=60", "--set", "churn=null", "--set", "prepare=null"),
        *("--set", "adapters={kind: one_hot, name: a}"),
    ]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env={"COLUMNS": "200"})
    # What a busy machine does to a second and a half is not what this is about.
    assert result.exit_code in {0, 1}, result.output
    for expected in ("resident memory", "file handles", "threads", "e2e p90", "Kept in"):
        assert expected in result.output
    shown = json.loads((out / "soak.json").read_text())
    assert shown["passed"] is (result.exit_code == 0)
    assert shown["rule"] == RULE
    assert (shown["num_failed"], shown["errors"]) == (0, {})
    assert shown["num_requests"] > 20
    assert {each["title"] for each in shown["trends"]} == set(LIMITS)
    assert len((out / "samples.jsonl").read_text().splitlines()) >= 3
    for name in ("http-streamed", "http-whole", "grpc-streamed", "grpc-whole"):
        assert (out / name / "records.jsonl").read_text()
    assert (out / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert "Over the last two thirds" in (out / "report.html").read_text()


def test_soak_without_a_server_says_so(tmp_path: Path, unused_tcp_port: int) -> None:
    ready, address = tmp_path / "ready.json", f"127.0.0.1:{unused_tcp_port}"
    ready.write_text(json.dumps({"http": address, "grpc": address, "pid": os.getpid()}))
    arguments = ["--duration", "1", "--ready-file", str(ready), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--set", "prepare=null"], env={"COLUMNS": "200"})
    assert result.exit_code == 4
    assert f"no server at {address}" in result.output
