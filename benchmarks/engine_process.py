"""``python -m benchmarks engine-process``: the native engine in the process that asks it, and in one of its own.

A closed loop of the same requests goes through both in turn, round after round; which goes first changes from round to
round. Then the same again beside a thread that runs Python at the rate of a server that takes references: what that
costs an engine which shares its interpreter is why there is a process at all.
"""

import argparse
import asyncio
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.ours import serve_row
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineRequest
from server.engine.factory import make_native
from server.engine.native.config import NativeEngineConfig
from server.engine.process.engine import ProcessEngine
from server.settings import DEFAULT_MODEL

SHARED, OWN = "shared_process", "own_process"
SIDES = (SHARED, OWN)
_PROMPT_TOKENS = 200
# What a reference costs the server, and how many a second the feedback benchmark sends.
_HELD_S, _HELD_EVERY_S = 0.003, 0.01


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one side.

    Attributes:
        side: Which.
        is_beside_python: Whether a thread ran Python meanwhile.
        num_at_once: Requests in flight.
        tokens_per_s: Of all requests together.
        gap_ms: Median time between two tokens of a request, as the asking process sees them.
    """

    side: str
    is_beside_python: bool
    num_at_once: int
    tokens_per_s: float
    gap_ms: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``engine-process`` to the benchmarks' command line."""
    parser = commands.add_parser("engine-process", help="the native engine in a process of its own, and not")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="base; the shipped one if left out")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 32], help="requests in flight (default 1 32)")
    parser.add_argument("--requests", type=int, default=4, help="requests of a round for each in flight (default 4)")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    rounds = asyncio.run(_measure(arguments))
    for is_beside in (False, True):
        for num_at_once in arguments.at_once:
            print(_line(rounds, is_beside, num_at_once), flush=True)
    if arguments.json:
        figures = {"rounds": [asdict(each) for each in rounds], **describe_machine(0)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


async def _measure(arguments: argparse.Namespace) -> list[Round]:
    num_seqs = max(arguments.at_once)
    make = partial(make_native, NativeEngineConfig(str(arguments.model), device="cpu", max_num_seqs=num_seqs))
    engines: dict[str, Engine] = {SHARED: make(), OWN: ProcessEngine(make)}
    rounds: list[Round] = []
    try:
        for engine in engines.values():
            await engine.start()
            await _closed_loop(engine, num_seqs, arguments)
        for turn in range(arguments.rounds):
            for is_beside in (False, True):
                for num_at_once in arguments.at_once:
                    for side in SIDES[:: -1 if turn % 2 else 1]:
                        with _python_beside(is_on=is_beside):
                            figures = await _closed_loop(engines[side], num_at_once, arguments)
                        rounds.append(Round(side, is_beside, num_at_once, *figures))
    finally:
        for engine in engines.values():
            await engine.stop()
    return rounds


async def _closed_loop(engine: Engine, num_at_once: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return tokens per second and the median gap, with so many requests in flight at any time."""
    draws = random.Random(arguments.seed)  # noqa: S311 - chooses tokens, no secrets
    sampling = SamplingParams(max_new_tokens=arguments.new_tokens, ignore_eos=True)
    vocabulary = range(3, engine.info.base.vocab_size)
    requests = [
        EngineRequest(str(number), tuple(draws.choices(vocabulary, k=_PROMPT_TOKENS)), sampling)
        for number in range(num_at_once * arguments.requests)
    ]
    gaps_s: list[float] = []

    async def one_after_the_other(mine: Sequence[EngineRequest]) -> None:
        for request in mine:
            row = await serve_row(engine, request)
            gaps_s.extend(later_s - earlier_s for earlier_s, later_s in pairwise(row.arrival_s))

    begun_s = time.perf_counter()
    await asyncio.gather(*(one_after_the_other(requests[first::num_at_once]) for first in range(num_at_once)))
    took_s = time.perf_counter() - begun_s
    return len(requests) * arguments.new_tokens / took_s, statistics.median(gaps_s) * 1e3


@contextmanager
def _python_beside(*, is_on: bool) -> Iterator[None]:
    """Have a thread of this process hold the interpreter for a while, again and again."""
    is_over = threading.Event()

    def hold() -> None:
        while not is_over.wait(_HELD_EVERY_S - _HELD_S):
            until_s = time.thread_time() + _HELD_S
            while time.thread_time() < until_s:
                pass

    holder = threading.Thread(target=hold)
    if is_on:
        holder.start()
    try:
        yield
    finally:
        is_over.set()
        if is_on:
            holder.join()


def _line(rounds: Sequence[Round], is_beside: bool, num_at_once: int) -> str:
    """Return medians of both sides, and what the process gains and adds, round by round."""
    mine = {
        side: [
            each
            for each in rounds
            if (each.side, each.is_beside_python, each.num_at_once) == (side, is_beside, num_at_once)
        ]
        for side in SIDES
    }
    pairs = list(zip(mine[SHARED], mine[OWN], strict=True))
    ratio = statistics.median(own.tokens_per_s / shared.tokens_per_s for shared, own in pairs)
    added_ms = statistics.median(own.gap_ms - shared.gap_ms for shared, own in pairs)
    rates = " and ".join(f"{statistics.median(each.tokens_per_s for each in mine[side]):.0f}" for side in SIDES)
    gaps = " and ".join(f"{statistics.median(each.gap_ms for each in mine[side]):.2f}" for side in SIDES)
    return (
        f"{num_at_once} at once{', beside Python' if is_beside else ''}: {rates} tokens/s without and with a process "
        f"of its own (ratio {ratio:.3f}), {gaps} ms a token ({added_ms:+.2f})"
    )
