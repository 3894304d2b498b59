"""Five hundred open streams, two hundred of them never read: the others are whole, memory is bounded, all end."""

import asyncio
from collections import Counter
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
NUM_FAST_TOKENS, NUM_SLOW_TOKENS = 20, 300
# What 200 answers of 300 tokens take unread, log-probabilities with half of them, is about 40 MB.
MOST_GROWTH_BYTES = 120 << 20
ENGINE = {
    "step_time_s": 0.01,
    "max_num_seqs": NUM_FAST + NUM_SLOW,
    "max_num_waiting": NUM_FAST + NUM_SLOW,
    "max_new_tokens": NUM_SLOW_TOKENS,
}
# That callers who take nothing are given up is checked elsewhere, with fewer of them.
PATIENT = {"stall_timeout_s": 600.0}


async def test_streams_beside_readers_that_take_nothing_are_whole_and_memory_is_bounded(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, {"engine": ENGINE, "http": PATIENT, "grpc": PATIENT})
    await server.start()
    try:
        process = psutil.Process(server.pid)
        rss_before = process.memory_info().rss
        async with httpx.AsyncClient(base_url=server.http, timeout=60.0) as page:
            async with _never_reading("http", server) as over_http, _never_reading("grpc", server) as over_grpc:
                over_both = (_streams(server, protocol, NUM_FAST // 2) for protocol in WireProtocol)
                counts = [count for each in await asyncio.gather(*over_both) for count in each]
                # The engine gets rid of every row, also of those whose callers have taken next to nothing.
                while (await _figures(page))["running"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                assert counts == [NUM_FAST_TOKENS] * NUM_FAST
                assert process.memory_info().rss - rss_before < MOST_GROWTH_BYTES
                # Over HTTP the answers, with their log-probabilities, are more than there is room for on the way.
                assert (await _figures(page)).total() <= NUM_FAST + NUM_SLOW // 2
            assert over_http.num_read == over_grpc.num_read == 0
            while (await _figures(page)).total() < NUM_FAST + NUM_SLOW:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            # One end each.
            figures = await _figures(page)
            assert figures["CANCELLED"] >= NUM_SLOW // 2
            assert figures["OK"] + figures["CANCELLED"] == NUM_FAST + NUM_SLOW
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
    pieces = [piece async for piece in client.stream(request, 200.0)]
    assert pieces[-1].answer is not None
    assert "".join(piece.delta for piece in pieces) == pieces[-1].answer.summary
    return pieces[-1].answer.num_output_tokens


async def _figures(page: httpx.AsyncClient) -> Counter[str]:
    """Return how many requests ended with which code, and how many run and wait."""
    figures: Counter[str] = Counter()
    for line in (await page.get("/metrics")).text.splitlines():
        value = line.rpartition(" ")[2]
        if line.startswith("medley_requests_total{"):
            figures[line.partition('code="')[2].partition('"')[0]] += int(float(value))
        elif line.startswith(("medley_requests_running ", "medley_requests_waiting ")):
            figures[line.partition(" ")[0].rpartition("_")[2]] = int(float(value))
    return figures
