"""``python -m benchmarks serving``: what the server adds to its engine, over HTTP and gRPC, whole answers and streams.

The same texts go through the engine alone, from token ids to token ids in this process, and through a ``medley serve``
of the same settings, in turn, round after round. First with so many users who always wait for their next answer, which
gives throughputs; then at half of what the engine alone can do, the same arrivals for all sides, which gives latencies.
The shipped base is the hardest case: the smaller the model, the more of a request's time is the server's; ``--shape``
takes one of a published shape, with random weights and without adapters. The clients share the machine's processors
with the server, as in no real use; what they take counts against it here.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine
from benchmarks.models import MEDLEY_MINI, SHAPES, served_base
from benchmarks.serving_engine import EngineAlone
from benchmarks.serving_results import ENGINE, ServingResult, SideRun
from loadtest.arrivals import Poisson, schedule
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, MedleyClient, SummaryRequest
from loadtest.clients.reading import read_stream
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.examples import SHIPPED_EXAMPLES, read_examples
from loadtest.popularity import parse_mix

_TIMEOUT_S = 120.0

Ask = Callable[[SummaryRequest], Awaitable[int]]
"""Has a text answered and returns the number of tokens of the answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        shape: The base.
        mix: Adapters by weight, of those that ship.
        num_users: Requests in flight while throughput is measured.
        share: Arrivals per second over the engine's own throughput while latency is measured.
        seconds: Length of each run.
        num_rounds: Runs of each side.
        max_new_tokens: Most tokens of an answer.
        seed: Seed of the arrivals.
    """

    shape: str = MEDLEY_MINI
    mix: str = "base=1,dialogsum=3"
    num_users: int = 32
    share: float = 0.5
    seconds: float = 10.0
    num_rounds: int = 5
    max_new_tokens: int = 48
    seed: int = 0


QUICK = {"seconds": 4.0, "num_rounds": 2}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``serving`` to the benchmarks' command line."""
    parser = commands.add_parser("serving", help="what the server adds to its engine, over HTTP and gRPC")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--shape", choices=SHAPES, default=MEDLEY_MINI, help="the base (default medley-mini)")
    parser.add_argument("--rounds", type=int, help="rounds of one run of each side (default 5)")
    parser.add_argument("--seconds", type=float, help="length of a run (default 10)")
    parser.add_argument("--users", type=int, help="requests in flight for throughput (default 32)")
    parser.add_argument("--serve-option", action="append", default=[], help="an option of medley serve, as --x=y")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def run_serving(plan: Plan, options: Sequence[str] = ()) -> ServingResult:
    """Start both and measure, printing each run as it ends.

    Args:
        plan: What to run.
        options: Further options of ``medley serve``.

    Raises:
        ServerFailedError: If the server does not start or does not end as it should.
        ClientError: If a request fails.
        RuntimeError: If the two sides do not answer with as many tokens.
    """
    return asyncio.run(_measure(plan, options))


async def _measure(plan: Plan, options: Sequence[str]) -> ServingResult:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medley-bench-")))
        model = served_base(folder / "base", plan.shape)
        engine = await stack.enter_async_context(EngineAlone(model))
        options = (*options, "--model", str(model))
        server = await stack.enter_async_context(ServerProcess(ServerConfig(folder, options=options)))
        sides: dict[str, Ask] = {ENGINE: engine.ask}
        for protocol in WireProtocol:
            client = await stack.enter_async_context(create_client(protocol, server.address(protocol), NO_CREDENTIALS))
            sides |= {f"{protocol}": _whole(client), f"{protocol}-stream": _streamed(client)}
        return await _Measuring(plan, sides).result()


def _whole(client: MedleyClient) -> Ask:
    async def ask(request: SummaryRequest) -> int:
        return (await client.summarize(request, _TIMEOUT_S)).num_output_tokens

    return ask


def _streamed(client: MedleyClient) -> Ask:
    async def ask(request: SummaryRequest) -> int:
        return (await read_stream(client, request, _TIMEOUT_S, lambda: None)).num_output_tokens

    return ask


class _Measuring:
    """All sides' runs, from the first to the last."""

    def __init__(self, plan: Plan, sides: Mapping[str, Ask]) -> None:
        self._plan, self._sides = plan, sides
        texts = [example.text for example in read_examples(SHIPPED_EXAMPLES)]
        kinds = parse_mix(plan.mix)
        # Every text with every adapter of the mix, as often as its weight says.
        self._requests = [
            SummaryRequest(text, kind.adapters, plan.max_new_tokens)
            for text in texts
            for kind in kinds
            for _ in range(round(kind.weight))
        ]

    async def result(self) -> ServingResult:
        await self._check_same_work()
        flat_out = await self._rounds(self._flat_out)
        rate = self._plan.share * median(run.requests_per_s for run in flat_out if run.side == ENGINE)
        _say(f"latencies at {rate:.1f} requests/s")
        timed = await self._rounds(lambda side, turn: self._timed(side, turn, rate))
        return ServingResult(flat_out, timed, rate)

    async def _check_same_work(self) -> None:
        for request in self._requests:
            numbers = {side: await ask(request) for side, ask in self._sides.items()}
            if len(set(numbers.values())) > 1:
                raise RuntimeError(f"the sides do not do the same work: {numbers}")

    async def _rounds(self, measure: Callable[[str, int], Awaitable[SideRun]]) -> list[SideRun]:
        runs, sides = [], list(self._sides)
        for turn in range(self._plan.num_rounds):
            # Whoever goes first does so in no two rounds running.
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                runs.append(await measure(side, turn))
                _say(f"round {turn + 1}, {runs[-1].line()}")
        return runs

    async def _flat_out(self, side: str, turn: int) -> SideRun:
        run = _Run(self._sides[side])

        async def user(first: int) -> None:
            number = first
            while run.elapsed_s < self._plan.seconds:
                await run.ask(self._requests[number % len(self._requests)])
                number += self._plan.num_users

        await asyncio.gather(*map(user, range(self._plan.num_users)))
        return run.ended(side, turn)

    async def _timed(self, side: str, turn: int, rate: float) -> SideRun:
        run = _Run(self._sides[side])
        async with asyncio.TaskGroup() as group:
            for number, due_s in enumerate(
                schedule(Poisson(rate=rate), self._plan.seed + turn, self._plan.seconds, None)
            ):
                await asyncio.sleep(max(0.0, due_s - run.elapsed_s))
                group.create_task(run.ask(self._requests[number % len(self._requests)]))
        return run.ended(side, turn)


class _Run:
    """One run of one side while it goes on."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._begun_s, self._cpu_begun_s = time.perf_counter(), time.process_time()
        self._num_tokens, self._latencies_ms = 0, list[float]()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._begun_s

    async def ask(self, request: SummaryRequest) -> None:
        asked_s = time.perf_counter()
        num_tokens = await self._ask(request)
        self._num_tokens += num_tokens
        self._latencies_ms.append((time.perf_counter() - asked_s) * 1e3)

    def ended(self, side: str, turn: int) -> SideRun:
        cpu_s = time.process_time() - self._cpu_begun_s
        return SideRun(side, turn, self.elapsed_s, self._num_tokens, self._latencies_ms, cpu_s)


def _run(arguments: argparse.Namespace) -> None:
    given = {"num_rounds": arguments.rounds, "seconds": arguments.seconds, "num_users": arguments.users}
    plan = replace(Plan(), **(QUICK if arguments.quick else {}))
    plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
    if arguments.shape != MEDLEY_MINI:
        plan = replace(plan, shape=arguments.shape, mix="base")  # the shipped adapters are for the shipped base
    result = run_serving(plan, arguments.serve_option)
    for key, figure in result.headline().items():
        _say(f"{key}: {figure:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**result.as_json(plan), **describe_machine(0)}, indent=2) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)
