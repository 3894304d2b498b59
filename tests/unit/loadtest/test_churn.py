"""Preparation, the operator and the observer, against Medley on the fake engine, over both protocols."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtest.churn import Operator
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError
from loadtest.preparation import prepare
from loadtest.recording import Recording, load_recording
from loadtest.records import Outcome
from loadtest.report import summarize_run
from loadtest.scenario import Churn, Scenario
from loadtest.scenario_file import load_scenario
from loadtest.session import Session
from loadtest.timeline import Change, Event
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.parametrize("protocol", list(WireProtocol))


@pytest.fixture
async def medley(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path / "data", fake_engine()) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in lora_files().items():
        (folder / name).write_bytes(content)
    return str(folder)


def _address(medley: RunningServer, protocol: WireProtocol) -> str:
    return medley.http.removeprefix("http://") if protocol is WireProtocol.HTTP else medley.grpc


async def test_prepare_makes_what_is_missing_each_with_a_digest_of_its_own(
    medley: RunningServer, source: str, protocol: WireProtocol
) -> None:
    async with create_client(protocol, _address(medley, protocol)) as client:
        await prepare(client, ["a", "b"], source)
        made: list[tuple[int, int]] = []
        await prepare(client, ["b", "c", "d"], source, lambda *progress: made.append(progress))
        versions = await client.list_adapters()
    assert sorted((version.name, version.version) for version in versions) == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert len({version.digest for version in versions}) == 4
    assert made == [(1, 2), (2, 2)]


async def test_operator_uploads_promotes_and_deletes_in_turn(
    medley: RunningServer, source: str, protocol: WireProtocol
) -> None:
    events: list[Event] = []
    async with create_client(protocol, _address(medley, protocol)) as client:
        operator = Operator(client, Churn(("a", "b"), source, every_s=0.001, keep=2), events.append)
        working = asyncio.create_task(operator.work(asyncio.get_running_loop().time()))
        while len(events) < 30:
            await asyncio.sleep(0.01)
            assert not working.done()
        working.cancel()
        ready = [version for version in await client.list_adapters() if version.state == "ready"]
    assert {event.error_code for event in events} == {""}
    ours = [(event.change, event.version) for event in events if event.name == "a"]
    assert ours[:9] == [
        *((Change.UPLOAD, 1), (Change.PROMOTE, 1), (Change.UPLOAD, 2), (Change.PROMOTE, 2)),
        *((Change.UPLOAD, 3), (Change.PROMOTE, 3), (Change.DELETE, 1)),
        *((Change.UPLOAD, 4), (Change.PROMOTE, 4)),
    ]
    assert max(Counter(version.name for version in ready).values()) <= 3
    assert all(event.started_s <= event.ended_s for event in events)


async def test_operator_refused_goes_on(source: str, protocol: WireProtocol) -> None:
    class Refusing:
        num_calls = 0

        async def upload_adapter(self, name: str, folder: Path, alias: str | None = None) -> None:
            self.num_calls += 1
            raise ClientError("RESOURCE_EXHAUSTED", "too many uploads")

    events: list[Event] = []
    operator = Operator(Refusing(), Churn(("a",), source, every_s=0.001), events.append)  # type: ignore[arg-type]
    working = asyncio.create_task(operator.work(asyncio.get_running_loop().time()))
    while len(events) < 3:  # noqa: ASYNC110 - nothing tells of a change but the change
        await asyncio.sleep(0.001)
    working.cancel()
    assert {(event.change, event.version, event.error_code) for event in events} == {
        (Change.UPLOAD, 0, "RESOURCE_EXHAUSTED")
    }


async def test_churn_scenario_whole_tells_bystanders_and_loads(
    medley: RunningServer, source: str, protocol: WireProtocol, tmp_path: Path
) -> None:
    scenario = _scenario(medley, protocol, source)
    with Recording(scenario, tmp_path / "run") as recording:
        await Session(recording).run()
    assert {record.outcome for record in recording.records} == {Outcome.COMPLETED}
    assert {event.change for event in recording.events} >= {Change.UPLOAD, Change.PROMOTE}
    assert {event.error_code for event in recording.events} == {""}
    kept = load_recording(tmp_path / "run")
    assert (kept.events, kept.readings) == (recording.events, recording.readings)
    report = summarize_run(recording.records, scenario.slo, {}, recording.events, recording.readings)
    assert report.churn is not None
    assert report.churn.bystanders is not None
    assert report.churn.changed is not None
    counted = [sum(part.outcomes.values()) for part in (report.churn.bystanders, report.churn.changed)]
    assert sum(counted) == sum(report.total.outcomes.values())
    assert min(counted) > 0
    # The observer has a page to read, whatever the load speaks; new versions have to be loaded.
    assert report.num_adapter_loads is not None
    assert report.num_adapter_loads > 0


def _scenario(medley: RunningServer, protocol: WireProtocol, source: str) -> Scenario:
    return load_scenario(
        "churn",
        [
            ("target.protocol", protocol.value),
            ("target.address", _address(medley, protocol)),
            ("observe", {"address": _address(medley, WireProtocol.HTTP), "every_s": 0.1}),
            ("adapters", {"kind": "uniform", "names": ["base", "calm", "churned-0"]}),
            ("prepare.source", source),
            ("churn", {"names": ["churned-0"], "source": source, "every_s": 0.05}),
            ("arrivals.rate", 40),
            ("duration_s", 1.5),
            ("warm_up.duration_s", 0.1),
        ],
    )
