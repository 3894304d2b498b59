"""How a load test ends when the server dies or somebody interrupts it: with a word, a status, and its records."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtest.records import Outcome, read_records
from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.slow

# A shell that runs the tests in the background has SIGINT ignored, which a child takes over.
_LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = (sys.executable, "-c", f"{_LISTEN}; from loadtest.cli import app; app()")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    running = ServerProcess(tmp_path / "server", {"engine": {"step_time_s": 0.01}})
    await running.start()
    yield running
    running.kill()


async def _begin(server: ServerProcess, out: Path, *more: str) -> asyncio.subprocess.Process:
    """Start a long load test, and give it once it has some records."""
    address = server.http.removeprefix("http://")
    arguments = ("--address", address, "--rate", "30", "--duration", "600", "--max-new-tokens", "8", *more)
    running = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, "--out", str(out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    async with asyncio.timeout(60.0):
        while not _num_lines(out) > 10:
            assert running.returncode is None
            await asyncio.sleep(0.05)
    return running


async def test_loadtest_server_killed_ends_with_a_word_and_its_records(server: ServerProcess, tmp_path: Path) -> None:
    running = await _begin(server, tmp_path / "run")
    server.kill()
    output, _ = await asyncio.wait_for(running.communicate(), 60.0)
    told = output.decode()
    assert running.returncode == 4, told
    assert "went away during the run" in told
    _assert_kept(tmp_path / "run", told)


async def test_loadtest_interrupted_ends_with_a_word_and_its_records(server: ServerProcess, tmp_path: Path) -> None:
    running = await _begin(server, tmp_path / "run", "--set", "client.num_processes=2")
    os.kill(running.pid, signal.SIGINT)
    output, _ = await asyncio.wait_for(running.communicate(), 60.0)
    told = output.decode()
    assert running.returncode == 130, told
    assert "interrupted" in told
    assert "Traceback" not in told
    _assert_kept(tmp_path / "run", told)
    # What there is can still be looked at.
    late = ("report", str(tmp_path / "run"))
    made = await asyncio.create_subprocess_exec(*COMMAND, *late, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await asyncio.wait_for(made.communicate(), 60.0)
    assert made.returncode in {0, 3}, output.decode()


async def test_loadtest_killed_leaves_its_records_and_no_process(server: ServerProcess, tmp_path: Path) -> None:
    running = await _begin(server, tmp_path / "run", "--set", "client.num_processes=2")
    workers = _children(running.pid)
    assert len(workers) == 2
    running.kill()
    await running.communicate()
    async with asyncio.timeout(30.0):
        while any(map(_is_there, workers)):  # noqa: ASYNC110 - they are no children of ours
            await asyncio.sleep(0.05)
    assert len(read_records(tmp_path / "run" / "records.jsonl")) > 10


def _assert_kept(run: Path, told: str) -> None:
    records = read_records(run / "records.jsonl")
    assert f"{len(records)} records are in" in told
    assert sum(record.outcome is Outcome.COMPLETED for record in records) >= 10
    assert not (run / "report.json").exists()


def _num_lines(out: Path) -> int:
    file = out / "records.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
