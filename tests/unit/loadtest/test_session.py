"""Whole runs against the fake server: several sending processes, warm-up, and every way to end badly."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from loadtest.clients.base import ClientError
from loadtest.presence import ServerGoneError
from loadtest.recording import Recording, RecordingError, load_recording
from loadtest.records import Outcome, read_records, to_line
from loadtest.scenario import Scenario
from loadtest.scenario_file import load_scenario
from loadtest.senders import WorkerLostError
from loadtest.session import Session


def _scenario(address: str, **more: object) -> Scenario:
    overrides = {"target__address": address, "arrivals__rate": 60, "duration_s": 1, "observe__every_s": 0} | more
    return load_scenario("default", [(key.replace("__", "."), value) for key, value in overrides.items()])


async def _run(scenario: Scenario, folder: Path | None = None) -> Recording:
    with Recording(scenario, folder) as recording:
        await Session(recording).run()
    return recording


async def test_session_several_processes_send_the_same_schedule_as_one(server, tmp_path: Path) -> None:
    scenario = _scenario(server.http, adapters__mix="base,a,missing", warm_up__rounds=0)
    alone = await _run(scenario)
    dealt = await _run(
        _scenario(server.http, adapters__mix="base,a,missing", warm_up__rounds=0, client__num_processes=3), tmp_path
    )

    def sent(recording: Recording) -> list[tuple[float, str, Outcome, str]]:
        return sorted((r.scheduled_s, r.label, r.outcome, r.error_code) for r in recording.records)

    assert sent(dealt) == sent(alone)
    assert len(dealt.records) > 30
    # One clock for all: nothing was sent before its time, by more than a tick.
    assert min(record.sent_s - record.scheduled_s for record in dealt.records) > -0.02
    assert all(record.ended_s >= record.sent_s for record in dealt.records)
    assert load_recording(tmp_path).records == dealt.records


async def test_session_closed_loop_in_several_processes_keeps_to_its_number(server) -> None:
    arrivals = {"kind": "closed", "num_users": 4, "think_s": 0.0}
    scenario = _scenario(
        server.http, arrivals__rate=None, arrivals=arrivals, num_requests=21, duration_s=None, client__num_processes=2
    )
    recording = await _run(scenario)
    assert [record.outcome for record in recording.records] == [Outcome.COMPLETED] * 21


async def test_session_sending_process_killed_is_told_and_the_records_are_kept(server, tmp_path: Path) -> None:
    scenario = _scenario(server.http, duration_s=60, client__num_processes=2)
    with Recording(scenario, tmp_path) as recording:
        running = asyncio.create_task(Session(recording).run())
        while len(recording.records) < 5:  # noqa: ASYNC110 - nothing tells of a record but the record
            await asyncio.sleep(0.01)
        os.kill(_children()[0], signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="status -9"):
            await running
    assert _children() == []
    assert len(read_records(tmp_path / "records.jsonl")) == len(recording.records) >= 5


async def test_session_cancelled_leaves_no_process_and_keeps_the_records(server, tmp_path: Path) -> None:
    scenario = _scenario(server.http, duration_s=60, client__num_processes=2)
    with Recording(scenario, tmp_path) as recording:
        running = asyncio.create_task(Session(recording).run())
        while len(recording.records) < 5:  # noqa: ASYNC110 - nothing tells of a record but the record
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert _children() == []
    assert len(read_records(tmp_path / "records.jsonl")) >= 5


async def test_session_no_server_there_is_told_before_anything_is_sent(unused_tcp_port: int) -> None:
    with pytest.raises(ServerGoneError, match=f"no server at 127.0.0.1:{unused_tcp_port}"):
        await _run(_scenario(f"127.0.0.1:{unused_tcp_port}"))


async def test_session_warm_up_goes_over_the_kinds_and_is_not_recorded(server) -> None:
    scenario = _scenario(server.http, adapters__mix="base,a", warm_up__rounds=2, duration_s=None, num_requests=3)
    recording = await _run(scenario)
    assert (server.num_started, len(recording.records)) == (2 * 2 + 3, 3)
    with pytest.raises(ClientError, match="NOT_FOUND"):
        await _run(_scenario(server.http, adapters__mix="missing"))


def test_recording_broken_off_in_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    with Recording(_scenario("x:1"), tmp_path):
        pass
    from tests.unit.loadtest.test_report import RECORDS

    whole = "".join(map(to_line, RECORDS))
    (tmp_path / "records.jsonl").write_text(whole[:-10])
    assert load_recording(tmp_path).records == RECORDS[:-1]
    (tmp_path / "records.jsonl").write_text("{}\n" + whole)
    with pytest.raises(RecordingError, match="not a record"):
        load_recording(tmp_path)
    with pytest.raises(RecordingError, match="holds no run"):
        load_recording(tmp_path / "absent")


def _children() -> list[int]:
    """Return this process's sending processes."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"loadtest.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
