"""What the side-by-side benchmark calls: the load lab's commands, the servers in turn. Runs with servers need vLLM."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

from benchmarks.side_by_side import MEDLEY, VLLM, Plan, run_side_by_side
from loadtest.cli import app

ADDRESSES = {VLLM: "127.0.0.1:1", MEDLEY: "127.0.0.1:2"}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    told = tmp_path / "told.jsonl"
    client = tmp_path / "medley"
    client.write_text(
        f'#!/usr/bin/env python3\nimport json, sys\nopen({str(told)!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")\n'
    )
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    return Plan(settings=("arrivals.rate=2",), client=client, out=tmp_path / "out")


def test_servers_are_asked_in_turn_and_compared_with_vllms_first_run(plan: Plan, tmp_path: Path) -> None:
    run_side_by_side(plan, ADDRESSES)
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    addresses = [line[line.index("--address") + 1] for line in told[:-1]]
    assert addresses == [f"127.0.0.1:{number}" for number in (1, 2, 1, 2, 2, 1)]
    assert all("arrivals.rate=2" in line for line in told[:-1])
    assert [("duration_s=3" in line) for line in told[:-1]] == [True, True, False, False, False, False]
    assert told[-1][-4:] == ["--titles", "vllm-1,vllm-2,medley-1,medley-2", "--out", str(plan.out)]


def test_commands_are_ones_the_load_lab_takes(plan: Plan, tmp_path: Path) -> None:
    runner, command = CliRunner(), get_command(app)
    load = plan.load_command("127.0.0.1:1", tmp_path / "run", ("duration_s=1",))[2:]
    result = runner.invoke(command, load)
    assert (result.exit_code, "no server at 127.0.0.1:1" in result.output) == (2, True), result.output
    result = runner.invoke(command, plan.compare_command(["vllm-1", "medley-1"])[2:])
    assert (result.exit_code, "holds no run" in result.output) == (2, True), result.output
