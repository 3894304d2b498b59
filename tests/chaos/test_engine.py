"""``kill -9`` of the engine's process under load: what was in it ends once, with UNAVAILABLE; a new one takes over."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, SummaryRequest
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.server_process import ServerProcess

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

NUM_CALLERS = 8
NUM_KILLS = 2
START_S = 300.0
SETTINGS = {"engine": {"own_process": "true", "dtype": "float32"}}


class Callers:
    """Ask without end, over both wires, whole answers and streams; what each request ended with is noted."""

    def __init__(self, server: ServerProcess) -> None:
        self._addresses = {WireProtocol.HTTP: server.http.removeprefix("http://"), WireProtocol.GRPC: server.grpc}
        self.num_answered = 0
        self.codes: list[str] = []
        self.last_answer_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for caller in range(NUM_CALLERS):
                group.create_task(self._call(list(WireProtocol)[caller % 2], stop, is_streamed=caller % 4 < 2))

    async def until_answered(self, num_more: int) -> None:
        enough = self.num_answered + num_more
        async with asyncio.timeout(START_S):
            while self.num_answered < enough:  # noqa: ASYNC110 - the server is another process
                await asyncio.sleep(0.01)

    async def _call(self, protocol: WireProtocol, stop: asyncio.Event, *, is_streamed: bool) -> None:
        request = SummaryRequest("#Person1#: Is the room free on Friday?\n#Person2#: Yes, it is.", max_new_tokens=40)
        async with create_client(protocol, self._addresses[protocol]) as client:
            while not stop.is_set():
                try:
                    if is_streamed:
                        answers = [piece.answer async for piece in client.stream(request, START_S)]
                        assert answers[-1] is not None
                    else:
                        await client.summarize(request, START_S)
                except ClientError as error:
                    self.codes.append(error.code)
                    await asyncio.sleep(0.5)
                else:
                    self.num_answered += 1
                    self.last_answer_s = time.monotonic()


async def test_killed_engine_ends_what_was_in_it_once_and_comes_back(tmp_path: Path, record_fault: RecordFault) -> None:
    server = ServerProcess(tmp_path, SETTINGS, engine="native", start_timeout_s=START_S)
    stop = asyncio.Event()
    recovered_s = []
    await server.start()
    try:
        callers = Callers(server)
        async with asyncio.TaskGroup() as group:
            group.create_task(callers.run(stop))
            for _ in range(NUM_KILLS):
                await callers.until_answered(2 * NUM_CALLERS)
                os.kill(await asyncio.to_thread(engine_of, server.pid), signal.SIGKILL)
                killed_s = time.monotonic()
                await callers.until_answered(1)
                recovered_s.append(callers.last_answer_s - killed_s)
            await callers.until_answered(2 * NUM_CALLERS)
            stop.set()
        assert await server.stop() == 0
    finally:
        server.kill()
    assert callers.codes
    assert set(callers.codes) == {"UNAVAILABLE"}
    record_fault(
        Fault(
            f"kill -9 of the engine, {NUM_KILLS} times under load",
            sent=f"{callers.num_answered + len(callers.codes)} requests",
            refused=f"{len(callers.codes)} of them, in the engine or while it was away: UNAVAILABLE",
            lost="nothing else",
            recovered_s=max(recovered_s),
        )
    )


def engine_of(pid: int) -> int:
    """Return the process of the engine of a server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (engine,) = [each for each in children if b"engine/process/" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return int(engine)
