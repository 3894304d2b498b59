"""``python -m benchmarks streams``: what slow readers do to the streams beside them, and to the server's memory.

Over each protocol, on the fake engine and on the native one: streams of callers who read at once, alone, then beside
as many slow readers as asked for, then beside as many quick ones, since more streams take more of the engine and of the
machine however they are read. Callers are processes of their own. Each stream's tokens are timed where they arrive.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.machine import describe_machine
from benchmarks.slow_readers import ReaderProcess, SlowReading
from loadtest.arrivals import ClosedLoop
from loadtest.clients import WireProtocol
from loadtest.clients.target import Protocol, Target
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.lengths import Fixed, Lengths
from loadtest.recording import Recording
from loadtest.records import Outcome
from loadtest.scenario import ClientLimits, Observe, Scenario, WarmUp
from loadtest.session import Session

ALONE, SLOW, QUICK = "alone", "beside slow readers", "beside quick readers"
SIDES = (ALONE, SLOW, QUICK)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        engines: ``fake``, ``native`` or both.
        num_streams: Streams whose tokens are timed, always so many at once.
        num_beside: Slow readers, and in their place quick ones.
        max_new_tokens: Tokens of a timed answer, at most.
        num_slow_tokens: Tokens of a slow reader's answer, at most.
        step_time_s: Seconds a step of the fake engine takes.
        seconds: Length of each run, after a warm-up.
        warm_up_s: Length of that.
        num_rounds: Runs of each side.
        num_processes: Processes that read at once.
    """

    engines: tuple[str, ...] = ("fake", "native")
    num_streams: int = 300
    num_beside: int = 200
    max_new_tokens: int = 48
    num_slow_tokens: int = 256
    step_time_s: float = 0.1
    seconds: float = 8.0
    warm_up_s: float = 3.0
    num_rounds: int = 1
    num_processes: int = 3


SMALL = {"num_streams": 30, "num_beside": 20, "seconds": 3.0, "warm_up_s": 1.0, "num_processes": 1, "step_time_s": 0.02}


@dataclass(frozen=True, slots=True)
class StreamsRun:
    """One run of one side.

    Attributes:
        engine: On which engine.
        protocol: Over which protocol.
        side: One of :data:`SIDES`.
        turn: Its round, from 0.
        num_answers: Whole answers, those of the warm-up too.
        num_failed: Other answers.
        itl_p50_ms: Median ITL of all gaps that lie in the measured part, whenever their request was sent.
        itl_p99_ms: Its 99th percentile.
        pieces_per_s: Pieces that arrived then.
        lag_p99_ms: How late the clients sent, 99th percentile.
        rss_before_mb: Resident memory of the server's processes before.
        rss_most_mb: The most it was meanwhile.
        rss_after_mb: A moment after all callers left.
        slow_ends: How answers of slow readers ended meanwhile.
    """

    engine: str
    protocol: str
    side: str
    turn: int
    num_answers: int
    num_failed: int
    itl_p50_ms: float
    itl_p99_ms: float
    pieces_per_s: float
    lag_p99_ms: float
    rss_before_mb: float
    rss_most_mb: float
    rss_after_mb: float
    slow_ends: dict[str, int]

    def line(self) -> str:
        """Return the run in words."""
        return (
            f"{self.engine}, {self.protocol}, {self.side}: {self.num_answers} answers, {self.num_failed} failed, "
            f"{self.pieces_per_s:.0f} pieces/s, ITL p50 {self.itl_p50_ms:.1f} ms, p99 {self.itl_p99_ms:.1f} ms, "
            f"RSS {self.rss_before_mb:.0f}, at most {self.rss_most_mb:.0f}, after {self.rss_after_mb:.0f} MB"
        )


def headline(runs: Sequence[StreamsRun]) -> dict[str, float]:
    """Return, by engine and protocol, ITL's p99 beside slow readers over that alone and beside quick ones.

    Rounds are summed up by their median; memory by what all rounds of a side grew by at most.
    """
    figures: dict[str, float] = {}
    for engine, protocol in dict.fromkeys((run.engine, run.protocol) for run in runs):
        ours = [run for run in runs if (run.engine, run.protocol) == (engine, protocol)]
        p99 = {side: float(np.median([run.itl_p99_ms for run in ours if run.side == side])) for side in SIDES}
        name = f"{engine}_{protocol}"
        figures[f"{name}_itl_p99_slow_over_alone"] = p99[SLOW] / p99[ALONE]
        figures[f"{name}_itl_p99_slow_over_quick"] = p99[SLOW] / p99[QUICK]
        grown = [run.rss_most_mb - run.rss_before_mb for run in ours if run.side == SLOW]
        figures[f"{name}_rss_grown_beside_slow_mb"] = max(grown)
    return figures


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``streams`` to the benchmarks' command line."""
    parser = commands.add_parser("streams", help="streams beside slow readers: ITL and the server's memory")
    parser.add_argument("--engine", choices=Plan().engines, action="append", help="default: both, one after the other")
    parser.add_argument("--small", action="store_true", help="few streams, to see that it works")
    parser.add_argument("--streams", type=int, help="streams that are timed (default 300)")
    parser.add_argument("--beside", type=int, help="slow readers beside them (default 200)")
    parser.add_argument("--step-time-s", type=float, help="of the fake engine (default 0.1)")
    parser.add_argument("--seconds", type=float, help="length of a run (default 8)")
    parser.add_argument("--rounds", type=int, help="runs of each side (default 1)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def run_streams(plan: Plan) -> list[StreamsRun]:
    """Run every side, printing each run as it ends.

    Raises:
        ServerFailedError: If a server does not start or does not end as it should.
        RuntimeError: If the slow readers cannot begin, or no stream was answered.
    """
    return asyncio.run(_measure(plan))


async def _measure(plan: Plan) -> list[StreamsRun]:
    runs: list[StreamsRun] = []
    for engine in plan.engines:
        async with _server(plan, engine) as server:
            for protocol in WireProtocol:
                for turn in range(plan.num_rounds):
                    # Whoever goes first does so in no two rounds running.
                    for side in SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]:
                        runs.append(await _Side(plan, engine, server, protocol).run(side, turn))
                        _say(runs[-1].line())
    return runs


@asynccontextmanager
async def _server(plan: Plan, engine: str) -> AsyncIterator[ServerProcess]:
    num_streams = plan.num_streams + plan.num_beside
    settings = {
        "name": engine,
        "step_time_s": plan.step_time_s,
        "max_num_seqs": num_streams,
        "max_num_waiting": num_streams,
        "max_new_tokens": max(plan.max_new_tokens, plan.num_slow_tokens),
    }
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        config = Path(name) / "medley.yaml"
        config.write_text(json.dumps({"engine": settings, "evaluation": {"warm_at_start": False}}))
        async with ServerProcess(ServerConfig(Path(name), options=("--config", str(config)))) as server:
            yield server


class _Side:
    """One run: its callers, and the server they call."""

    def __init__(self, plan: Plan, engine: str, server: ServerProcess, protocol: WireProtocol) -> None:
        self._plan, self._engine, self._server, self._protocol = plan, engine, server, protocol
        self._process = psutil.Process(server.pid)
        self._rss_most = 0.0

    async def run(self, side: str, turn: int) -> StreamsRun:
        rss_before = self._rss_mb()
        watching = asyncio.create_task(self._watch())
        ends: dict[str, int] = {}
        try:
            if side == SLOW:
                async with ReaderProcess(self._slow_reading()) as readers:
                    recording = await self._timed(self._plan.num_streams)
                ends = readers.ends
            else:
                recording = await self._timed(self._plan.num_streams + self._plan.num_beside * (side == QUICK))
        finally:
            watching.cancel()
        await asyncio.sleep(1.0)
        return self._summed_up(
            side, turn, recording, (rss_before, max(self._rss_most, rss_before), self._rss_mb()), ends
        )

    async def _timed(self, num_streams: int) -> Recording:
        recording = Recording(self._scenario(num_streams), None)
        await Session(recording).run()
        return recording

    def _scenario(self, num_streams: int) -> Scenario:
        plan, protocol = self._plan, self._protocol
        return Scenario(
            name="streams",
            duration_s=plan.seconds,
            target=Target(protocol=Protocol(protocol.value), address=self._server.address(protocol), timeout_s=300.0),
            arrivals=ClosedLoop(num_users=num_streams, think_s=0.0),
            lengths=Lengths(output=Fixed(value=plan.max_new_tokens)),
            warm_up=WarmUp(rounds=1, duration_s=plan.warm_up_s),
            client=ClientLimits(num_processes=plan.num_processes, max_in_flight=num_streams),
            observe=Observe(every_s=0.0),
        )

    def _slow_reading(self) -> SlowReading:
        plan, protocol = self._plan, self._protocol
        return SlowReading(
            protocol=protocol.value,
            address=self._server.address(protocol),
            num_readers=plan.num_beside,
            text="A: Where were you? B: At the market. " * 12,
            max_new_tokens=plan.num_slow_tokens,
            # Log-probabilities make an answer too long for the buffers on its way.
            num_logprobs=5,
        )

    async def _watch(self) -> None:
        while True:
            self._rss_most = max(self._rss_most, self._rss_mb())
            await asyncio.sleep(0.25)

    def _rss_mb(self) -> float:
        processes = (self._process, *self._process.children(recursive=True))
        return float(sum(each.memory_info().rss for each in processes)) / 2**20

    def _summed_up(
        self, side: str, turn: int, recording: Recording, rss_mb: tuple[float, float, float], ends: dict[str, int]
    ) -> StreamsRun:
        records, seconds = recording.records, self._plan.seconds
        whole = [record for record in records if record.outcome is Outcome.COMPLETED]
        times_s = [[at_s for at_s in record.piece_times_s if 0 <= at_s <= seconds] for record in whole]
        itl_ms = np.concatenate([np.diff(each) * 1e3 for each in times_s] or [[]])
        if not itl_ms.size:
            raise RuntimeError(f"no stream was answered in time: {[record.error_message for record in records[:3]]}")
        return StreamsRun(
            engine=self._engine,
            protocol=self._protocol.value,
            side=side,
            turn=turn,
            num_answers=len(whole),
            num_failed=len(records) - len(whole),
            itl_p50_ms=float(np.percentile(itl_ms, 50)),
            itl_p99_ms=float(np.percentile(itl_ms, 99)),
            pieces_per_s=sum(map(len, times_s)) / seconds,
            lag_p99_ms=float(np.percentile([1e3 * (each.sent_s - each.scheduled_s) for each in records], 99)),
            rss_before_mb=rss_mb[0],
            rss_most_mb=rss_mb[1],
            rss_after_mb=rss_mb[2],
            slow_ends=ends,
        )


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    given = {
        "engines": tuple(arguments.engine) if arguments.engine else None,
        "num_streams": arguments.streams,
        "num_beside": arguments.beside,
        "step_time_s": arguments.step_time_s,
        "seconds": arguments.seconds,
        "num_rounds": arguments.rounds,
    }
    base = replace(Plan(), **(SMALL if arguments.small else {}))
    return replace(base, **{key: value for key, value in given.items() if value is not None})


def _run(arguments: argparse.Namespace) -> None:
    plan, begun_s = plan_of(arguments), time.monotonic()
    runs = run_streams(plan)
    figures = headline(runs)
    for key, figure in figures.items():
        _say(f"{key}: {figure:.3f}")
    _say(f"took {time.monotonic() - begun_s:.0f} s")
    if arguments.json:
        shown = {**figures, "plan": asdict(plan), "runs": [asdict(run) for run in runs], **describe_machine(0)}
        arguments.json.write_text(json.dumps(shown, indent=2) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)
