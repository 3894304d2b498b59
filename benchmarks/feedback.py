"""``python -m benchmarks feedback``: what references at 100 a second cost the callers who wait for summaries.

One ``medley serve`` is offered a steady Poisson load at a share of what it can do, in turn without and with references
for finished requests arriving beside it, round after round, the same arrivals on both sides of a round. Which side goes
first changes from round to round. Client, feedback and server are three processes on one machine.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.feedback_sender import Feedback, FeedbackOutcome, ready_sender
from benchmarks.machine import describe_machine
from loadtest.arrivals import Poisson, generator, schedule
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, MedleyClient, SummaryAnswer, SummaryRequest
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.examples import SHIPPED_EXAMPLES, Example, read_examples
from loadtest.lengths import Fixed, Lengths
from loadtest.popularity import Weighted
from loadtest.records import Outcome
from loadtest.runner import Runner
from loadtest.sender import RunnerConfig
from loadtest.workload import plan

ALONE, BESIDE = "alone", "beside_feedback"
SIDES = (ALONE, BESIDE)
_NUM_AT_ONCE = 32
# As many as the server keeps for references to come.
_NUM_KEPT_IDS = 4096
_DROPPED = "medley_evaluation_dropped_total"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        engine: ``native``, on the shipped base and adapters, or ``fake``.
        step_time_s: Seconds of one step of the fake engine.
        mix: Adapters by weight.
        share: Requests per second over those the server can do.
        feedback_rate: References per second.
        seconds: Length of each run.
        num_rounds: Rounds of one run of each side.
        max_new_tokens: Most tokens of a summary.
        seed: Seed of arrivals, texts and adapters.
    """

    engine: str = "native"
    step_time_s: float = 0.004
    mix: str = "base=1,dialogsum=2,dialogsum+dialogsum-prompt=1"
    share: float = 0.6
    feedback_rate: float = 100.0
    seconds: float = 20.0
    num_rounds: int = 5
    max_new_tokens: int = 48
    seed: int = 0


FAKE_MIX = "base"
QUICK = {"seconds": 8.0, "num_rounds": 2}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side.

    Attributes:
        side: Which.
        turn: Its round, from 0.
        latencies_ms: End-to-end latencies of the summaries.
        num_failed: Requests without one.
        feedback: What became of the references; None on the side without.
        num_dropped: Scorings the server dropped meanwhile, as its queue was full.
        cpu_s: Processor seconds the server took; a busy machine moves latencies far more than this.
    """

    side: str
    turn: int
    latencies_ms: Sequence[float]
    num_failed: int
    feedback: FeedbackOutcome | None
    num_dropped: int
    cpu_s: float

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies."""
        return float(np.percentile(self.latencies_ms, percent))


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """A whole benchmark.

    Attributes:
        plan: What was run.
        capacity: Summaries per second with as many in flight as there is room for.
        rate: Summaries per second that were asked for.
        runs: In order.
    """

    plan: Plan
    capacity: float
    rate: float
    runs: Sequence[Run]

    def headline(self) -> dict[str, float]:
        """Return percentiles of all rounds' requests together and their ratios, beside feedback over alone."""
        figures: dict[str, float] = {}
        for percent in (50, 99):
            ratio, low, high = self._ratio(percent)
            figures |= {
                **{f"p{percent}_ms_{side}": float(np.percentile(self._latencies_ms(side), percent)) for side in SIDES},
                f"p{percent}_ratio": ratio,
                f"p{percent}_ratio_low": low,
                f"p{percent}_ratio_high": high,
            }
        sent = [run.feedback for run in self.runs if run.feedback is not None]
        num_sent = sum(each.num_sent for each in sent)
        return figures | {
            "num_failed": sum(run.num_failed for run in self.runs),
            "num_references": num_sent,
            "references_per_s": num_sent / max(self.plan.seconds * len(sent), 1e-9),
            "num_scored": sum(each.codes.get("OK", 0) for each in sent),
            "num_dropped": sum(run.num_dropped for run in self.runs),
            "server_cpu_ms_per_reference": self._cpu_ms_per_reference(),
            "feedback_p99_ms": float(np.percentile([ms for each in sent for ms in each.latencies_ms] or [0.0], 99)),
        }

    def as_json(self) -> dict[str, object]:
        """Return the figures of every run, without single latencies."""
        runs = [
            {
                "side": run.side,
                "turn": run.turn,
                "num_completed": len(run.latencies_ms),
                "num_failed": run.num_failed,
                "p50_ms": run.percentile_ms(50),
                "p99_ms": run.percentile_ms(99),
                "num_dropped": run.num_dropped,
                "cpu_s": run.cpu_s,
                "feedback": run.feedback
                and {
                    "num_sent": run.feedback.num_sent,
                    "codes": run.feedback.codes,
                    "worst_lag_ms": run.feedback.worst_lag_ms,
                },
            }
            for run in self.runs
        ]
        return {
            **self.headline(),
            "plan": asdict(self.plan),
            "capacity": self.capacity,
            "rate": self.rate,
            "runs": runs,
        }

    def _cpu_ms_per_reference(self) -> float:
        """Return what the server's processor time grew by with each reference, the median of the rounds."""
        cpu_s = {(run.turn, run.side): run.cpu_s for run in self.runs}
        grew = [
            (run.cpu_s - cpu_s[run.turn, ALONE]) * 1e3 / run.feedback.num_sent
            for run in self.runs
            if run.feedback is not None
        ]
        return statistics.median(grew)

    def _latencies_ms(self, side: str) -> list[float]:
        return [ms for run in self.runs if run.side == side for ms in run.latencies_ms]

    def _ratio(self, percent: float) -> tuple[float, float, float]:
        """Return the ratio of a percentile and where 95 % of bootstrap draws of the requests have it.

        The tail of a few hundred requests is made by few of them: a ratio says little without its interval.
        """
        ours, alone = (np.array(self._latencies_ms(side)) for side in (BESIDE, ALONE))
        draws = np.random.default_rng(self.plan.seed)

        def drawn(latencies: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> "np.ndarray":
            places = draws.integers(len(latencies), size=(1000, len(latencies)))
            return np.percentile(latencies[places], percent, axis=1)

        low, high = np.percentile(drawn(ours) / drawn(alone), [2.5, 97.5])
        return float(np.percentile(ours, percent) / np.percentile(alone, percent)), float(low), float(high)


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``feedback`` to the benchmarks' command line."""
    parser = commands.add_parser("feedback", help="serving latency beside references at 100 a second")
    parser.add_argument("--engine", choices=["native", "fake"], default=Plan().engine)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="rounds of one run without and one with feedback (default 5)")
    parser.add_argument("--seconds", type=float, help="length of a run (default 20)")
    parser.add_argument("--share", type=float, help="summaries per second over those the server can do (default 0.6)")
    parser.add_argument("--rate", type=float, help="summaries per second, in place of a share")
    parser.add_argument("--feedback-rate", type=float, help="references per second (default 100)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def run_feedback(plan_: Plan, rate: float | None = None) -> FeedbackResult:
    """Start a server and measure, printing each run as it ends.

    Raises:
        ServerFailedError: If the server does not start or does not end as it should.
        ClientError: If a request of the warm-up fails.
    """
    return asyncio.run(_measure(plan_, rate))


async def _measure(plan_: Plan, rate: float | None) -> FeedbackResult:
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        config = Path(name) / "medley.yaml"
        # The fake one, too: in the server's process its steps would wait for the event loop, which no engine's do.
        engine = {"name": plan_.engine, "step_time_s": plan_.step_time_s, "own_process": True}
        config.write_text(json.dumps({"engine": engine}))
        async with (
            ServerProcess(ServerConfig(Path(name), options=("--config", str(config)))) as server,
            create_client(WireProtocol.HTTP, server.address(WireProtocol.HTTP), NO_CREDENTIALS) as client,
        ):
            return await _Measuring(plan_, server, client).result(rate)


class _Remembering:
    """A client that keeps the ids of what was answered."""

    def __init__(self, client: MedleyClient) -> None:
        self._client = client
        self.request_ids: deque[str] = deque(maxlen=_NUM_KEPT_IDS)

    async def summarize(self, request: SummaryRequest, timeout_s: float) -> SummaryAnswer:
        answer = await self._client.summarize(request, timeout_s)
        self.request_ids.append(answer.request_id)
        return answer


class _Measuring:
    """One server's runs, from the first to the last."""

    def __init__(self, plan_: Plan, server: ServerProcess, client: MedleyClient) -> None:
        self._plan, self._client = plan_, _Remembering(client)
        self._address, self._process = server.address(WireProtocol.HTTP), psutil.Process(server.pid)
        self._examples: list[Example] = read_examples(SHIPPED_EXAMPLES)
        self._mix = Weighted(plan_.mix)
        self._kinds = self._mix.entries()

    async def result(self, rate: float | None) -> FeedbackResult:
        """Run everything."""
        capacity = await self._capacity()
        rate = self._plan.share * capacity if rate is None else rate
        _say(f"{self._plan.engine}: {capacity:.1f} summaries/s at most, asked for {rate:.1f}/s")
        runs = []
        for turn in range(self._plan.num_rounds):
            for side in SIDES[:: -1 if turn % 2 else 1]:
                runs.append(await self._side(side, turn, rate))
                _say(_line(runs[-1]))
        return FeedbackResult(self._plan, capacity, rate, runs)

    async def _capacity(self) -> float:
        """Return summaries per second with many in flight, after a first pass that is not counted."""
        await self._flat_out(2.0)
        return await self._flat_out(max(3.0, self._plan.seconds / 4))

    async def _flat_out(self, seconds: float) -> float:
        begun_s = time.perf_counter()

        async def one_after_the_other(first: int) -> int:
            number = 0
            while time.perf_counter() - begun_s < seconds:
                kind = self._kinds[(first + number) % len(self._kinds)]
                text = self._examples[(first + number) % len(self._examples)].text
                await self._client.summarize(SummaryRequest(text, kind.adapters, self._plan.max_new_tokens), 60.0)
                number += 1
            return number

        done = await asyncio.gather(*(one_after_the_other(first) for first in range(_NUM_AT_ONCE)))
        return sum(done) / (time.perf_counter() - begun_s)

    async def _side(self, side: str, turn: int, rate: float) -> Run:
        num_dropped, cpu_s = self._num_dropped(), self._cpu_s()
        if side == ALONE:
            run = await self._serve(side, turn, rate)
        else:
            with ready_sender(self._feedback()) as sender:
                sender.begin()
                run = replace(await self._serve(side, turn, rate), feedback=await sender.outcome())
        return replace(run, num_dropped=self._num_dropped() - num_dropped, cpu_s=self._cpu_s() - cpu_s)

    async def _serve(self, side: str, turn: int, rate: float) -> Run:
        seed = self._plan.seed + turn
        times_s = schedule(Poisson(rate=rate), seed, self._plan.seconds, None)
        kinds = self._mix.draw(generator("adapters", seed), len(times_s))
        lengths = Lengths(output=Fixed(self._plan.max_new_tokens))
        planned = plan(times_s, kinds, self._examples, seed, lengths)
        config = RunnerConfig(stream=False)
        records = await Runner(self._client, config, lambda _record: None).run(planned)  # type: ignore[arg-type]
        completed = [record for record in records if record.outcome is Outcome.COMPLETED]
        if not completed:
            raise RuntimeError(f"no request of {len(records)} was answered: {records[0].error_message}")
        latencies_ms = [(record.ended_s - record.sent_s) * 1e3 for record in completed]
        return Run(side, turn, latencies_ms, len(records) - len(completed), None, 0, 0.0)

    def _feedback(self) -> Feedback:
        references = [summary for example in self._examples for summary in example.summaries]
        ids = tuple(self._client.request_ids)
        return Feedback(self._address, self._plan.feedback_rate, self._plan.seconds, ids, references)

    def _cpu_s(self) -> float:
        # The engine and the scorer are processes of their own.
        times = [each.cpu_times() for each in (self._process, *self._process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def _num_dropped(self) -> int:
        metrics = httpx.get(f"http://{self._address}/metrics", timeout=30.0).text
        values = [line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith(_DROPPED)]
        return round(sum(map(float, values)))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    given = {
        "engine": arguments.engine,
        "share": arguments.share,
        "num_rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "feedback_rate": arguments.feedback_rate,
        "seed": arguments.seed,
        "mix": FAKE_MIX if arguments.engine == "fake" else None,
    }
    base = replace(Plan(), **QUICK) if arguments.quick else Plan()
    return replace(base, **{key: value for key, value in given.items() if value is not None})


def _run(arguments: argparse.Namespace) -> None:
    result = run_feedback(plan_of(arguments), arguments.rate)
    for key, figure in result.headline().items():
        _say(f"{key}: {figure:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**result.as_json(), **describe_machine(0)}, indent=2) + "\n")


def _line(run: Run) -> str:
    line = f"round {run.turn + 1}, {run.side}: {len(run.latencies_ms)} summaries, p50 {run.percentile_ms(50):.1f} ms"
    line += f", p99 {run.percentile_ms(99):.1f} ms, {run.num_failed} failed, {run.cpu_s:.1f} s of CPU"
    if run.feedback is not None:
        codes = ", ".join(f"{code} {number}" for code, number in sorted(run.feedback.codes.items()))
        line += (
            f"; references: {codes}, {run.num_dropped} dropped, sent {run.feedback.worst_lag_ms:.0f} ms late at most"
        )
    return line


def _say(line: str) -> None:
    print(line, flush=True)
