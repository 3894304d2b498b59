"""The command line against the fake server: what it prints, saves and exits with."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from loadtest.cli import app
from loadtest.clients import WireProtocol
from loadtest.records import Outcome, read_records

# What a busy machine does to the client is not what these tests are about.
PATIENT = ("--set", "client.max_lag_p99_ms=60000")


async def _invoke(*arguments: str) -> Result:
    # The command runs an event loop of its own, while this one runs the fake server.
    return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *PATIENT], env={"COLUMNS": "200"})


@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_loadtest_prints_and_saves_the_report(server, protocol: WireProtocol, tmp_path: Path) -> None:
    result = await _invoke(
        *("--protocol", protocol.value, "--address", server.address(protocol), "--mix", "base=1,a=1,missing+a=1"),
        *("--rate", "50", "--num-requests", "30", "--warmup", "0", "--slo-e2e-ms", "50000", "--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    for expected in ("TTFT", "goodput", "NOT_FOUND", "missing+a", "30/30"):
        assert expected in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["adapters"] == {"kind": "mix", "mix": "base=1,a=1,missing+a=1"}
    assert report["config"]["slo"]["e2e_ms"] == 50000.0
    assert report["config"]["target"]["protocol"] == protocol.value
    assert sum(report["total"]["outcomes"].values()) == 30
    assert report["total"]["rates"]["goodput_per_s"] == report["total"]["rates"]["requests_per_s"] > 0
    assert report["adapters"]["missing+a"]["outcomes"]["completed"] == 0
    assert len(read_records(tmp_path / "records.jsonl")) == 30
    for picture in ("latency.png", "timeline.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "missing+a" in (tmp_path / "report.html").read_text()


async def test_loadtest_same_seed_sends_the_same(server, tmp_path: Path) -> None:
    counts = []
    for name in ("one", "two"):
        result = await _invoke(
            *("--address", server.http, "--mix", "base,a,b", "--rate", "80", "--duration", "0.5", "--seed", "5"),
            *("--out", str(tmp_path / name)),
        )
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / name / "report.json").read_text())
        counts.append({label: part["outcomes"] for label, part in report["adapters"].items()})
    assert counts[0] == counts[1]


async def test_loadtest_scenario_file_with_overrides(server, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one two"}\n')
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"target: {{address: '{server.http}'}}\narrivals: {{kind: constant, rate: 50}}\nduration_s: 100\n"
        "adapters: {kind: one_hot, name: a}\ndata: texts.jsonl\nwarm_up: {duration_s: 0.21}\n"
    )
    out = tmp_path / "out"
    result = await _invoke("--scenario", str(file), "--out", str(out), "--set", "duration_s=0.4", "--seed", "3")
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert (report["config"]["name"], report["config"]["seed"], report["config"]["duration_s"]) == ("mine", 3, 0.4)
    # Every 20 ms from the start of the warm-up: 10 before 210 ms, 20 more before 610 ms.
    assert (report["num_warm_up"], report["total"]["outcomes"]["completed"]) == (10, 20)
    assert set(report["adapters"]) == {"a"}


async def test_loadtest_closed_loop_has_no_more_in_flight_than_users(server, tmp_path: Path) -> None:
    result = await _invoke(
        *("--address", server.http, "--set", "arrivals={kind: closed, num_users: 3, think_s: 0.01}"),
        *("--num-requests", "25", "--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    records = read_records(tmp_path / "records.jsonl")
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 25
    assert max(sum(other.sent_s <= record.sent_s < other.ended_s for other in records) for record in records) == 3


async def test_loadtest_warm_up_refused_stops_before_the_run(server, tmp_path: Path) -> None:
    result = await _invoke("--address", server.http, "--mix", "base,missing", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "NOT_FOUND" in result.output


async def test_loadtest_nothing_completed_exits_with_one(server, tmp_path: Path) -> None:
    arguments = ("--address", server.http, "--mix", "busy", "--warmup", "0", "--rate", "50", "--num-requests", "3")
    result = await _invoke(*arguments, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "RESOURCE_EXHAUSTED" in result.output


async def test_loadtest_client_too_late_gives_no_figures_but_keeps_the_records(server, tmp_path: Path) -> None:
    arguments = ("--address", server.http, "--rate", "50", "--num-requests", "5", "--out", str(tmp_path))
    result = await asyncio.to_thread(
        CliRunner().invoke, app, [*arguments, "--set", "client.max_lag_p99_ms=0.000001"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 3
    assert "no figures" in result.output
    assert "client.num_processes" in result.output
    assert "TTFT" not in result.output
    assert len(read_records(tmp_path / "records.jsonl")) == 5
    assert not (tmp_path / "report.json").exists()


async def test_loadtest_no_server_there_says_so(unused_tcp_port: int, tmp_path: Path) -> None:
    result = await _invoke("--address", f"127.0.0.1:{unused_tcp_port}", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert f"no server at 127.0.0.1:{unused_tcp_port}" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--no-stream", "--slo-ttft-ms", "5"), "need target.stream"),
        (("--rate", "0"), "arrivals.rate: should be greater than 0"),
        (("--mix", "a=x"), "not a number"),
        (("--data", "absent.jsonl"), "cannot read"),
        (("--duration", "0.0001", "--rate", "0.01"), "no request arrives"),
        (("--scenario", "absent"), "there is no scenario 'absent'"),
        (("--set", "arrivals.ratio=3"), "arrivals.ratio: unknown key; there are rate, kind"),
        (("--set", "nonsense"), "write key.of.it=value"),
        (("--rate", "3", "sweep"), "options go behind 'sweep'"),
    ],
)
async def test_loadtest_bad_arguments_are_refused(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    out = () if "sweep" in arguments else ("--out", str(tmp_path), *PATIENT)
    result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *out], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert reason in result.output


async def test_sweep_finds_the_knee_and_keeps_every_run(server, tmp_path: Path) -> None:
    # Every request takes 60 ms; all are good until the client may have no more than one in flight.
    result = await _invoke(
        *("sweep", "--address", server.http, "--out", str(tmp_path), "--factor", "10", "--bisections", "1"),
        *("--set", "arrivals={kind: constant, rate: 4}", "--set", "duration_s=1", "--set", "slo.e2e_ms=30000"),
        *("--set", "client.max_in_flight=1"),
    )
    assert result.exit_code == 0, result.output
    assert "The knee: at" in result.output
    assert "30000 ms" in result.output
    swept = json.loads((tmp_path / "sweep.json").read_text())
    assert len(swept["points"]) == 3
    assert (swept["points"][0]["rate"], swept["points"][0]["is_good"]) == (4.0, True)
    assert (swept["points"][2]["rate"], swept["points"][2]["is_good"]) == (40.0, False)
    assert _num_runs(tmp_path) == 3
    assert swept["sentence"].replace("≤", "") in (tmp_path / "report.html").read_text().replace("≤", "")
    assert (tmp_path / "throughput-latency.png").exists()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("slo={}", "needs an objective"),
        ("arrivals={kind: closed}", "needs arrivals with a rate"),
        ("duration_s=null", "needs duration_s"),
    ],
)
async def test_sweep_that_cannot_be_is_refused(setting: str, reason: str, tmp_path: Path) -> None:
    result = await _invoke(
        *("sweep", "--out", str(tmp_path), "--set", "slo.e2e_ms=1", "--set", "num_requests=5", "--set", setting)
    )
    assert result.exit_code == 2
    assert reason in result.output


async def test_compare_and_report_work_on_what_was_kept(server, tmp_path: Path) -> None:
    for name, ttft_s in (("before", 0.03), ("after", 0.3)):
        server.ttft_s = ttft_s
        arguments = ("--address", server.http, "--rate", "50", "--num-requests", "30", "--out", str(tmp_path / name))
        assert (await _invoke(*arguments)).exit_code == 0
    runs = (str(tmp_path / "before" / "report.json"), str(tmp_path / "after"))
    result = CliRunner().invoke(app, ["compare", *runs, "--out", str(tmp_path / "both")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "after against before" in result.output
    (compared,) = json.loads((tmp_path / "both" / "comparison.json").read_text())["comparisons"]
    rows = {row["title"]: row for row in compared["rows"]}
    assert rows["TTFT p50"]["ratio"] > 2
    assert rows["TTFT p50"]["low"] > 1
    assert "after against before" in (tmp_path / "both" / "report.html").read_text()
    made = (tmp_path / "after" / "report.json").read_text()
    (tmp_path / "after" / "report.json").unlink()
    again = CliRunner().invoke(app, ["report", str(tmp_path / "after")], env={"COLUMNS": "200"})
    assert again.exit_code == 0, again.output
    assert (tmp_path / "after" / "report.json").read_text() == made
    several = CliRunner().invoke(app, ["compare", *runs, runs[0], "--titles", "a,b,c"], env={"COLUMNS": "200"})
    assert several.exit_code == 0, several.output
    assert all(title in several.output for title in ("b against a", "c against a"))
    for wrong in ([runs[0]], [*runs, "--titles", "a,a"], [*runs, "--titles", "a"]):
        assert CliRunner().invoke(app, ["compare", *wrong]).exit_code == 2
    none = CliRunner().invoke(app, ["compare", str(tmp_path), runs[1]], env={"COLUMNS": "200"})
    assert none.exit_code == 2
    assert "holds no run" in none.output


def _num_runs(folder: Path) -> int:
    return len(list(folder.glob("rate-*/records.jsonl")))
