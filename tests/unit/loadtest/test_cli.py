"""The command line against the fake server: what it prints, saves and exits with."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from loadtest.cli import app
from loadtest.clients import WireProtocol


async def _invoke(*arguments: str) -> Result:
    # The command runs an event loop of its own, while this one runs the fake server.
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env={"COLUMNS": "200"})


@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_loadtest_prints_and_saves_the_report(server, protocol: WireProtocol, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = await _invoke(
        *("--protocol", protocol.value, "--address", server.address(protocol), "--mix", "base=1,a=1,missing+a=1"),
        *("--rate", "50", "--num-requests", "30", "--warmup", "0", "--slo-e2e-ms", "5000", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    for expected in ("TTFT", "goodput", "NOT_FOUND", "missing+a", "30/30"):
        assert expected in result.output
    report = json.loads(file.read_text())
    assert report["config"]["mix"] == "base=1,a=1,missing+a=1"
    assert (report["config"]["slo_e2e_ms"], report["config"]["protocol"]) == (5000.0, protocol.value)
    assert "json_file" not in report["config"]
    assert sum(report["total"]["outcomes"].values()) == 30
    assert report["total"]["rates"]["goodput_per_s"] == report["total"]["rates"]["requests_per_s"] > 0
    assert report["adapters"]["missing+a"]["outcomes"]["completed"] == 0


async def test_loadtest_same_seed_sends_the_same(server, tmp_path: Path) -> None:
    counts = []
    for name in ("one.json", "two.json"):
        result = await _invoke(
            *("--address", server.http, "--mix", "base,a,b", "--rate", "80", "--duration", "0.5", "--seed", "5"),
            *("--json", str(tmp_path / name)),
        )
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / name).read_text())
        counts.append({label: part["outcomes"] for label, part in report["adapters"].items()})
    assert counts[0] == counts[1]


async def test_loadtest_warm_up_refused_stops_before_the_run(server) -> None:
    result = await _invoke("--address", server.http, "--mix", "base,missing")
    assert result.exit_code == 2
    assert "NOT_FOUND" in result.output


async def test_loadtest_nothing_completed_exits_with_one(server) -> None:
    arguments = ("--address", server.http, "--mix", "busy", "--warmup", "0", "--rate", "50", "--num-requests", "3")
    result = await _invoke(*arguments)
    assert result.exit_code == 1
    assert "RESOURCE_EXHAUSTED" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--no-stream", "--slo-ttft-ms", "5"), "need --stream"),
        (("--rate", "0"), "rate must be"),
        (("--mix", "a=x"), "not a number"),
        (("--data", "absent.jsonl"), "cannot read"),
        (("--json", "absent/report.json"), "there is no folder"),
        (("--duration", "0.0001", "--rate", "0.01"), "no request arrives"),
    ],
)
async def test_loadtest_bad_arguments_are_refused(arguments: tuple[str, ...], reason: str) -> None:
    result = await _invoke(*arguments)
    assert result.exit_code == 2
    assert reason in result.output
