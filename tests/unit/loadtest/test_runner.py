"""The runner against the fake server, whose latencies are known.

Tolerance: client and server share one event loop here, so a latency may be late by scheduling, never early.
"""

import asyncio

import pytest

from loadtest.arrivals import Poisson, generator, schedule
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError
from loadtest.examples import Example
from loadtest.metrics import Slo
from loadtest.popularity import Weighted, parse_mix
from loadtest.records import Outcome, RequestRecord
from loadtest.report import summarize_run
from loadtest.runner import Runner
from loadtest.sender import DROPPED_CODE, RunnerConfig
from loadtest.workload import PlannedRequest, plan

EARLY_MS, LATE_MS = 2.0, 300.0


def _planned(mix: str, num_requests: int, rate: float = 50.0) -> list[PlannedRequest]:
    kinds = Weighted(mix).draw(generator("adapters", 1), num_requests)
    return plan(schedule(Poisson(rate), 1, None, num_requests), kinds, [Example("1", "text")], seed=1)


async def _run(server, protocol: WireProtocol, planned, seen=None, **config) -> list[RequestRecord]:
    async with create_client(protocol, server.address(protocol)) as client:
        on_record = seen.append if seen is not None else lambda record: None
        return await Runner(client, RunnerConfig(**config), on_record).run(planned)


@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_run_measures_the_servers_latencies(server, protocol: WireProtocol) -> None:
    server.ttft_s, server.gap_s = 0.8, 0.4
    seen: list[RequestRecord] = []
    records = await _run(server, protocol, _planned("base=1,a=1", 40), seen)
    assert seen == records
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 40
    total = summarize_run(records, Slo(), {}).total
    expected_ms = {"ttft": 800.0, "itl": 400.0, "tpot": 400.0, "e2e": 800.0 + 3 * 400.0}
    for tag, value_ms in expected_ms.items():
        sample = total.latencies[tag]
        assert sample is not None
        assert value_ms - EARLY_MS < sample.p50 < value_ms + LATE_MS, tag
    assert total.num_output_tokens == 160


@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_run_without_streaming_knows_e2e_only(server, protocol: WireProtocol) -> None:
    records = await _run(server, protocol, _planned("base", 5), stream=False)
    latencies = summarize_run(records, Slo(), {}).total.latencies
    assert latencies["ttft"] is latencies["itl"] is latencies["tpot"] is None
    assert latencies["e2e"] is not None
    assert latencies["e2e"].p50 > 55.0


@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_run_failures_are_records_with_codes(server, protocol: WireProtocol) -> None:
    records = await _run(server, protocol, _planned("base,missing,busy", 30))
    codes = {record.label: record.error_code for record in records}
    assert codes == {"base": "", "missing": "NOT_FOUND", "busy": "RESOURCE_EXHAUSTED"}
    assert len(records) == 30


async def test_run_is_open_loop_slow_answers_do_not_hold_back_sending(server) -> None:
    # Nothing is answered until all were asked: a client that waits for an answer would wait for ever.
    server.answering.clear()
    async with asyncio.timeout(60.0), asyncio.TaskGroup() as group:
        run = group.create_task(_run(server, WireProtocol.HTTP, _planned("base", 20, rate=100.0)))
        while server.num_started < 20:  # noqa: ASYNC110 - the fake only counts
            await asyncio.sleep(0.01)
        server.answering.set()
    records = run.result()
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 20
    assert max(record.sent_s for record in records) < min(record.ended_s for record in records)


async def test_run_too_many_in_flight_drops_and_counts(server) -> None:
    server.answering.clear()
    seen: list[RequestRecord] = []
    async with asyncio.timeout(60.0), asyncio.TaskGroup() as group:
        planned = _planned("base", 20, rate=100.0)
        run = group.create_task(_run(server, WireProtocol.HTTP, planned, seen, max_in_flight=3))
        while len(seen) < 17:  # noqa: ASYNC110 - nothing tells of a record but the record
            await asyncio.sleep(0.01)
        server.answering.set()
    outcomes = summarize_run(run.result(), Slo(), {}).total.outcomes
    assert outcomes == {"completed": 3, "failed": 0, "dropped": 17}
    dropped = {record.error_code for record in run.result() if record.outcome is Outcome.DROPPED}
    assert dropped == {DROPPED_CODE}


async def test_warm_up_goes_over_the_mix_and_is_not_recorded(server) -> None:
    seen: list[RequestRecord] = []
    async with create_client(WireProtocol.HTTP, server.http) as client:
        runner = Runner(client, RunnerConfig(), seen.append)
        await runner.warm_up(parse_mix("base,a"), "text", 2)
        assert (server.num_started, seen) == (4, [])
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await runner.warm_up(parse_mix("missing"), "text", 1)


async def test_run_cancelled_leaves_nothing_running(server) -> None:
    server.ttft_s = 30.0
    task = asyncio.create_task(_run(server, WireProtocol.HTTP, _planned("base", 3)))
    while server.num_started < 3:  # noqa: ASYNC110 - the fake only counts
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [task for task in asyncio.all_tasks() if "_send" in repr(task.get_coro())]
