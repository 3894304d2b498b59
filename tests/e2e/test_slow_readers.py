"""Five hundred open streams, two hundred of them never read: the others are whole, memory is bounded, all end."""

import asyncio
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.slow_readers import ReaderProcess, SlowReading
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, MedleyClient, SummaryRequest
from tests.fixtures.server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_FAST, NUM_SLOW = 300, 200
NUM_FAST_TOKENS, NUM_SLOW_TOKENS = 20, 400
STALL_TIMEOUT_S = 4.0
# What 200 answers of 400 tokens take unread, log-probabilities with all of them, is about 60 MB.
MOST_GROWTH_BYTES = 160 << 20
SETTINGS = {
    "engine": {
        "step_time_s": 0.01,
        "max_num_seqs": NUM_FAST + NUM_SLOW,
        "max_num_waiting": NUM_FAST + NUM_SLOW,
        "max_new_tokens": NUM_SLOW_TOKENS,
    },
    "http": {"stall_timeout_s": STALL_TIMEOUT_S},
    "grpc": {"stall_timeout_s": STALL_TIMEOUT_S},
}


async def test_streams_beside_readers_that_take_nothing_are_whole_and_those_end(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, SETTINGS)
    await server.start()
    try:
        process = psutil.Process(server.pid)
        rss_before = process.memory_info().rss
        async with _never_reading("http", server) as over_http, _never_reading("grpc", server) as over_grpc:
            async with asyncio.TaskGroup() as group:
                fast = [group.create_task(_streams(server, protocol, NUM_FAST // 2)) for protocol in WireProtocol]
            rss_beside = process.memory_info().rss
            await _until_nothing_runs(server)
        counts = [count for each in fast for count in each.result()]
        assert counts == [NUM_FAST_TOKENS] * NUM_FAST
        assert rss_beside - rss_before < MOST_GROWTH_BYTES
        # One terminal each, and the slow ones' is that they were given up.
        assert await _ended(server) == {"OK": NUM_FAST, "CANCELLED": NUM_SLOW}
        assert over_http.num_read == over_grpc.num_read == 0
        assert await server.stop() == 0
    finally:
        server.kill()


def _never_reading(protocol: str, server: ServerProcess) -> ReaderProcess:
    address = server.http.removeprefix("http://") if protocol == "http" else server.grpc
    text = "x" * NUM_SLOW_TOKENS
    return ReaderProcess(
        SlowReading(protocol, address, NUM_SLOW // 2, text, NUM_SLOW_TOKENS, every_s=0, num_logprobs=3)
    )


async def _streams(server: ServerProcess, protocol: WireProtocol, number: int) -> list[int]:
    """Ask for so many streams at once and return how many tokens each of them brought."""
    address = server.http.removeprefix("http://") if protocol is WireProtocol.HTTP else server.grpc
    async with create_client(protocol, address, NO_CREDENTIALS) as client:
        return await asyncio.gather(*(_stream(client) for _ in range(number)))


async def _stream(client: MedleyClient) -> int:
    request = SummaryRequest("y" * 100, max_new_tokens=NUM_FAST_TOKENS)
    pieces = [piece async for piece in client.stream(request, 120.0)]
    assert pieces[-1].answer is not None
    assert "".join(piece.delta for piece in pieces) == "y" * NUM_FAST_TOKENS
    return pieces[-1].answer.num_output_tokens


async def _until_nothing_runs(server: ServerProcess) -> None:
    async with asyncio.timeout(200.0), httpx.AsyncClient(base_url=server.http, timeout=60.0) as client:
        while sum((await _ended(server, client)).values()) < NUM_FAST + NUM_SLOW:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _ended(server: ServerProcess, client: httpx.AsyncClient | None = None) -> dict[str, int]:
    """Return how many requests ended with which code."""
    if client is None:
        async with httpx.AsyncClient(base_url=server.http, timeout=60.0) as own:
            return await _ended(server, own)
    counts: dict[str, int] = {}
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith("medley_requests_total{"):
            code = line.partition('code="')[2].partition('"')[0]
            counts[code] = counts.get(code, 0) + int(float(line.rpartition(" ")[2]))
    return counts
