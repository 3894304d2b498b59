"""``python -m benchmarks request-cost``: what a request takes of the server's processor, over each protocol.

One ``medley serve`` whose engine is in a process of its own, as always, so what the server's process takes is what a
request costs outside the engine. It is the fake engine, at a steady pace, so that the machine is left to what is
measured; tokens are the shipped base's. Requests come at a steady rate, far below what the server can do, in turn over
each way, round after round. Processor time does not count what else runs on the machine, as wall time would; it is not
quite free of it either, as others use the same caches.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import describe_machine
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, MedleyClient, SummaryAnswer, SummaryRequest
from loadtest.clients.reading import read_stream
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.examples import SHIPPED_EXAMPLES, Example, read_examples
from server.settings import DEFAULT_MODEL

_TIMEOUT_S = 60.0
# What was put off to the background belongs to the requests before, too.
_REST_S = 0.5
_NUM_WARM = 20

Ask = Callable[[int], Awaitable[SummaryAnswer | None]]
"""Makes the request of that number; returns its answer where it is a summary."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One round of one way.

    Attributes:
        way: A protocol, one with ``-stream``, or ``references``.
        cpu_us: Processor time of the server's process for a request, beyond what it takes idle.
        way_ms: Median time a request spends on its way there and back: what the caller waited, less what passed from
            its acceptance to the end of its answer. 0 where there is no answer that tells.
        tokens: Mean tokens of an answer.
    """

    way: str
    cpu_us: float
    way_ms: float
    tokens: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``request-cost`` to the benchmarks' command line."""
    parser = commands.add_parser("request-cost", help="what a request takes of the server's processor")
    parser.add_argument("--engine", choices=["fake", "native"], default="fake")
    parser.add_argument("--step-time-s", type=float, default=0.004, help="of the fake engine (default 0.004)")
    parser.add_argument("--ways", nargs="+", help="a protocol, one with -stream, references; all if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200, help="of each way in a round (default 200)")
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second (default 40)")
    parser.add_argument("--new-tokens", type=int, default=32, help="most tokens of an answer (default 32)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def medians(turns: Sequence[Turn]) -> list[Turn]:
    """Return each way's medians over its rounds."""
    return [
        Turn(
            way,
            *(statistics.median(getattr(turn, name) for turn in turns if turn.way == way) for name in _FIGURES),
        )
        for way in dict.fromkeys(turn.way for turn in turns)
    ]


_FIGURES = ("cpu_us", "way_ms", "tokens")


def _run(arguments: argparse.Namespace) -> None:
    turns = asyncio.run(_measure(arguments))
    for each in medians(turns):
        print(f"{each.way}: {each.cpu_us:.0f} µs, {each.way_ms:.2f} ms on the way, {each.tokens:.1f} tokens")
    if arguments.json:
        results = {"turns": [asdict(turn) for turn in turns], **describe_machine(0)}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


async def _measure(arguments: argparse.Namespace) -> list[Turn]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medley-bench-")))
        config = folder / "medley.yaml"
        engine = {"name": arguments.engine, "model": str(DEFAULT_MODEL), "own_process": True}
        config.write_text(json.dumps({"engine": {**engine, "step_time_s": arguments.step_time_s}}))
        server = await stack.enter_async_context(ServerProcess(ServerConfig(folder, options=("--config", str(config)))))
        clients = {
            protocol: await stack.enter_async_context(create_client(protocol, server.address(protocol), NO_CREDENTIALS))
            for protocol in WireProtocol
        }
        ways = _ways(clients, read_examples(SHIPPED_EXAMPLES), arguments.new_tokens)
        ways = {way: ask for way, ask in ways.items() if way in (arguments.ways or ways)}
        process = psutil.Process(server.pid)
        turns = []
        for turn in range(arguments.rounds):
            # Whoever goes first does so in no two rounds running.
            names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            turns.extend([await _turn(way, ways[way], process, arguments) for way in names])
        return turns


def _ways(
    clients: Mapping[WireProtocol, MedleyClient], examples: Sequence[Example], max_new_tokens: int
) -> dict[str, Ask]:
    def request(number: int) -> SummaryRequest:
        return SummaryRequest(examples[number % len(examples)].text, (), max_new_tokens)

    def whole(client: MedleyClient) -> Ask:
        return lambda number: client.summarize(request(number), _TIMEOUT_S)

    def streamed(client: MedleyClient) -> Ask:
        return lambda number: read_stream(client, request(number), _TIMEOUT_S, lambda: None)

    answered: list[str] = []

    async def reference(number: int) -> None:
        client = clients[WireProtocol.HTTP]
        if len(answered) < _NUM_WARM:
            answered.append((await client.summarize(request(number), _TIMEOUT_S)).request_id)
        await client.submit_references(answered[number % len(answered)], examples[number % len(examples)].summaries[:1])

    ways: dict[str, Ask] = {}
    for protocol, client in clients.items():
        ways |= {f"{protocol}": whole(client), f"{protocol}-stream": streamed(client)}
    return ways | {"references": reference}


async def _turn(way: str, ask: Ask, process: psutil.Process, arguments: argparse.Namespace) -> Turn:
    for number in range(_NUM_WARM):
        await ask(number)
    way_ms: list[float] = []
    num_tokens: list[int] = []

    async def one(number: int) -> None:
        begun_s = time.perf_counter()
        answer = await ask(number)
        if answer is not None:
            way_ms.append((time.perf_counter() - begun_s) * 1e3 - answer.timings.e2e_ms)
            num_tokens.append(answer.num_output_tokens)

    num_requests, seconds = arguments.requests, arguments.requests / arguments.rate
    idle_s = await _cpu_s(process, asyncio.sleep(seconds / 2)) * 2

    async def all_of_them() -> None:
        begun_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(num_requests):
                await asyncio.sleep(max(0.0, begun_s + number / arguments.rate - time.perf_counter()))
                group.create_task(one(number))

    took_s = await _cpu_s(process, all_of_them())
    return Turn(
        way,
        (took_s - idle_s) / num_requests * 1e6,
        statistics.median(way_ms or [0.0]),
        statistics.fmean(num_tokens or [0]),
    )


async def _cpu_s(process: psutil.Process, work: Awaitable[None]) -> float:
    """Return the processor time that a process takes while something is done, and a little after."""
    await asyncio.sleep(_REST_S)
    before = process.cpu_times()
    await work
    await asyncio.sleep(_REST_S)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)
