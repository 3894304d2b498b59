"""Callers who stop reading, die, or vanish behind a dead line: each request ends once, nobody else notices."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from benchmarks.slow_readers import ReaderProcess, SlowReading
from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.change_clients import ChangeClient
from tests.fixtures.cut_line import CutLine, LineState
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic, under_traffic

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]

NUM_READERS = 20
# More than a reader's window holds; a minute's worth of steps.
NUM_TOKENS = 6000
NUM_ANSWERS = 60
STALL_TIMEOUT_S = 2.0
IMPATIENCE = {"stall_timeout_s": STALL_TIMEOUT_S}
ENGINE = {
    "step_time_s": 0.01,
    "max_num_seqs": 4 * NUM_READERS,
    "max_model_len": 2 * NUM_TOKENS,
    "max_new_tokens": NUM_TOKENS,
}
SETTINGS = {"engine": ENGINE, "http": IMPATIENCE, "grpc": IMPATIENCE}

Breaks = Callable[[ReaderProcess, CutLine], Awaitable[None]]


async def stop_reading(_readers: ReaderProcess, _line: CutLine) -> None:
    """They never read on."""


async def die(readers: ReaderProcess, _line: CutLine) -> None:
    """``kill -9``."""
    readers.kill()


async def vanish(_readers: ReaderProcess, line: CutLine) -> None:
    """Nobody says that the line is gone."""
    await line.become(LineState.DEAD)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("name", "breaks"), [("stop reading", stop_reading), ("are killed", die), ("vanish behind a dead line", vanish)]
)
async def test_callers_who_are_gone_end_once_and_nobody_else_notices(
    tmp_path: Path, protocol: str, name: str, breaks: Breaks, record_fault: RecordFault
) -> None:
    server = ServerProcess(tmp_path, SETTINGS)
    traffic = Traffic([server], ["adapter@stable"], num_callers=8, think_s=0.01, seed=1)
    await server.start()
    try:
        async with ChangeClient(server.http, server.grpc) as client:
            await client.send(Change(Kind.UPLOAD, "adapter", "upload", "http", seed=1, alias="stable"))
        host, _, port = (server.http.removeprefix("http://") if protocol == "http" else server.grpc).rpartition(":")
        async with CutLine(host, int(port)) as line, under_traffic(server, traffic):
            await traffic.until_served(NUM_ANSWERS)
            # What they do not read would gather on a longer way.
            port_of_theirs = line.port if breaks is vanish else int(port)
            async with ReaderProcess(_reading(protocol, port_of_theirs)) as readers:
                await breaks(readers, line)
                broken_s = time.monotonic()
                await _until_cancelled(server)
                recovered_s = time.monotonic() - broken_s
                await traffic.until_served(NUM_ANSWERS)
            # The readers' own end adds nothing: each of them was counted.
            await _until_cancelled(server)
    finally:
        server.kill()
    record_fault(
        Fault(
            f"{NUM_READERS} callers {name}, {protocol}",
            sent=f"{len(traffic.served)} requests of others, {NUM_READERS} streams of theirs",
            lost="nothing",
            recovered_s=recovered_s,
        )
    )


def _reading(protocol: str, port: int) -> SlowReading:
    text = "x" * NUM_TOKENS
    return SlowReading(protocol, f"127.0.0.1:{port}", NUM_READERS, text, NUM_TOKENS, every_s=0, num_logprobs=5)


async def _until_cancelled(server: ServerProcess) -> None:
    """Wait until each stream of the readers has ended as one whose caller is gone, and no more of them."""
    async with httpx.AsyncClient(base_url=server.http) as page, asyncio.timeout(60):
        while (num_cancelled := _cancelled((await page.get("/metrics")).text)) < NUM_READERS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert num_cancelled == NUM_READERS


def _cancelled(metrics: str) -> int:
    lines = [line for line in metrics.splitlines() if line.startswith("medley_requests_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'code="CANCELLED"' in line)
