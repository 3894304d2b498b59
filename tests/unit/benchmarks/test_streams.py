"""What the benchmark of streams makes of its runs, how it asks, and slow readers who end."""

import argparse
import asyncio
from dataclasses import replace

import pytest

pytest.importorskip("psutil", reason="reads the server's memory")

from benchmarks.slow_readers import ReaderProcess, SlowReading
from benchmarks.streams import ALONE, QUICK, SLOW, Plan, StreamsRun, add_command, headline, plan_of

RUN = StreamsRun(
    engine="fake",
    protocol="http",
    side=ALONE,
    turn=0,
    num_answers=10,
    num_failed=0,
    itl_p50_ms=5.0,
    itl_p99_ms=10.0,
    pieces_per_s=100.0,
    lag_p99_ms=1.0,
    rss_before_mb=100.0,
    rss_most_mb=101.0,
    rss_after_mb=100.0,
    slow_ends={},
)


def test_headline_sets_slow_readers_against_nobody_and_against_quick_ones() -> None:
    runs = [
        RUN,
        replace(RUN, side=SLOW, itl_p99_ms=10.5, rss_most_mb=130.0),
        replace(RUN, side=QUICK, itl_p99_ms=21.0),
        replace(RUN, protocol="grpc"),
        replace(RUN, protocol="grpc", side=SLOW),
        replace(RUN, protocol="grpc", side=QUICK),
    ]
    figures = headline(runs)
    assert figures["fake_http_itl_p99_slow_over_alone"] == 1.05
    assert figures["fake_http_itl_p99_slow_over_quick"] == 0.5
    assert figures["fake_http_rss_grown_beside_slow_mb"] == 30.0
    assert figures["fake_grpc_itl_p99_slow_over_alone"] == 1.0


def test_plan_of_the_command_line_puts_what_is_given_over_the_small_one() -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    plan = plan_of(parser.parse_args(["streams", "--small", "--engine", "fake", "--streams", "7"]))
    assert (plan.engines, plan.num_streams, plan.num_beside) == (("fake",), 7, 20)
    assert plan_of(parser.parse_args(["streams"])) == Plan()


@pytest.mark.parametrize("every_s", [0.001, 0.0])
async def test_slow_readers_end_when_they_are_told_to(every_s: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with ReaderProcess(SlowReading("http", address, 2, "text", 5, every_s=every_s, num_bytes=8)) as readers:
            await asyncio.sleep(0.5)
        assert set(readers.ends) <= {"whole"}
        assert (readers.num_read > 0) == (every_s > 0)
