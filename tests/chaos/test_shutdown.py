"""SIGTERM under load: what was accepted is answered whole, what comes later is refused, and the server ends in time."""

import asyncio
import time
from pathlib import Path

import pytest

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, SummaryAnswer, SummaryRequest
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.examples import SHIPPED_EXAMPLES, read_examples
from tests.fixtures.faults import Fault, RecordFault

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.chaos]

EXAMPLES = read_examples(SHIPPED_EXAMPLES)


async def test_sigterm_under_load_answers_everything_it_accepted(tmp_path: Path, record_fault: RecordFault) -> None:
    num_streams = 12
    started: set[int] = set()
    all_started = asyncio.Event()

    async def ask(server: ServerProcess, index: int) -> SummaryAnswer | None:
        protocol = list(WireProtocol)[index % 2]
        request = SummaryRequest(EXAMPLES[index % 5].text, ("dialogsum",) if index % 3 else (), max_new_tokens=100)
        answer = None
        async with create_client(protocol, server.address(protocol)) as client:
            async for piece in client.stream(request, 60.0):
                started.add(index)
                if len(started) == num_streams:
                    all_started.set()
                answer = piece.answer
        return answer

    async with ServerProcess(ServerConfig(tmp_path)) as server, asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(server, index)) for index in range(num_streams)]
        await all_started.wait()
        assert not all(task.done() for task in tasks)
        begun_s = time.monotonic()
        # Raises if the exit status is not 0 or the drain takes too long.
        await server.stop()
        drained_s = time.monotonic() - begun_s
    answers = [task.result() for task in tasks]
    assert {answer.finish_reason for answer in answers if answer} <= {"stop", "length"}
    assert None not in answers
    for protocol in WireProtocol:
        async with create_client(protocol, server.address(protocol)) as client:
            with pytest.raises(ClientError) as caught:
                await client.summarize(SummaryRequest("late"), 5.0)
            assert caught.value.code in {"CONNECTION", "UNAVAILABLE"}
    record_fault(
        Fault(
            f"SIGTERM under load (ends after {drained_s:.1f} s)",
            sent=f"{num_streams} streams under way, {len(WireProtocol)} requests afterwards",
            refused=f"the {len(WireProtocol)} afterwards",
            lost="nothing",
        )
    )
