"""``python -m benchmarks overload``: a server's goodput beyond its capacity, and a caller beside another's flood.

A ``medley serve`` of the shipped base, or of a published shape with random weights (``--shape``). First its capacity:
so many users as the batch has seats, each of whom always waits for the next answer. A good answer is one that is whole
within a bound, which is the median latency of those users times a factor: answers may wait about as long as they take
in a full batch. Every request tells the server that bound as its deadline. Then

- **overload**: Poisson arrivals at shares of the capacity, over HTTP and over gRPC; goodput is good answers a second;
- **flood**: a caller with a small share of the capacity, alone and beside another, with a key of its own, who sends
  three times the capacity, in turn.

The load lab's own senders send, which share the machine's processors with the server, as in no real use: at three times
the capacity the client and the refusals take what on a machine of their own they would not.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adapters.registry_records import Change
from benchmarks.machine import describe_machine
from benchmarks.models import MEDLEY_MINI, SHAPES, served_base
from benchmarks.overload_results import FloodRun, LoadRun, OverloadResult, plot
from loadtest.arrivals import ClosedLoop, Poisson
from loadtest.clients import WireProtocol
from loadtest.clients.base import Credentials
from loadtest.clients.target import Protocol, Target
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.lengths import Fixed, Lengths
from loadtest.metrics import Slo
from loadtest.popularity import Weighted
from loadtest.records import Outcome, RequestRecord, is_measured
from loadtest.scenario import ClientLimits, Scenario, WarmUp
from loadtest.senders import create_senders
from loadtest.shares import deal
from server.access.keys import KeyRing
from server.core.principal import Scope

_PATIENT_S = 60.0
_LEAD_S = 0.2
_TENANTS = ("light", "flood")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        shape: The base.
        mix: Adapters by weight, of those that ship.
        max_new_tokens: Most tokens of an answer.
        num_users: Users of the measurement of capacity: the seats of the server's batch.
        slo_factor: The bound over the median latency of those.
        loads: Arrivals over capacity.
        light_share: Arrivals of the caller beside the flood, over capacity.
        flood_load: Arrivals of the flood, over capacity.
        seconds: Length of a run.
        warm_up_s: Seconds of the same load before it.
        num_rounds: Pairs of runs of the caller alone and beside the flood.
        seed: Seed of arrivals and texts.
    """

    shape: str = MEDLEY_MINI
    mix: str = "base=1,dialogsum=3"
    max_new_tokens: int = 48
    num_users: int = 32
    slo_factor: float = 2.0
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    light_share: float = 0.2
    flood_load: float = 3.0
    seconds: float = 15.0
    warm_up_s: float = 3.0
    num_rounds: int = 3
    seed: int = 0


QUICK = {"seconds": 6.0, "warm_up_s": 2.0, "num_rounds": 1}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``overload`` to the benchmarks' command line."""
    parser = commands.add_parser("overload", help="goodput beyond capacity, and a caller beside another's flood")
    parser.add_argument("--quick", action="store_true", help="shorter runs, one round")
    parser.add_argument("--shape", choices=SHAPES, default=MEDLEY_MINI, help="the base (default medley-mini)")
    parser.add_argument("--seconds", type=float, help="length of a run (default 15)")
    parser.add_argument("--rounds", type=int, help="runs of the caller alone and beside the flood (default 3)")
    parser.add_argument("--light-share", type=float, help="the caller's arrivals over capacity (default 0.2)")
    parser.add_argument("--part", choices=("overload", "flood"), help="this part only")
    parser.add_argument("--serve-option", action="append", default=[], help="an option of medley serve, as --x=y")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write overload.png to this folder")
    parser.set_defaults(run=_run)


async def measure(plan: Plan, parts: Sequence[str], options: Sequence[str] = ()) -> OverloadResult:
    """Start a server and measure it, printing each run as it ends.

    Args:
        plan: What to run.
        parts: ``overload``, ``flood`` or both.
        options: Further options of ``medley serve``.

    Raises:
        ServerFailedError: If the server does not start or does not end as it should.
        RuntimeError: If nothing was answered while the capacity was measured.
    """
    async with _served(plan.shape, options) as (server, keys):
        measuring = _Measuring(plan, server, keys)
        result = await measuring.capacity()
        _say(f"capacity {result.capacity:.1f} answers/s, bound {result.slo_ms:.0f} ms")
        for protocol in WireProtocol if "overload" in parts else ():
            for load in plan.loads:
                result.loads.append(await measuring.load(protocol, load, result))
                _say(result.loads[-1].line())
        for turn in range(plan.num_rounds if "flood" in parts else 0):
            for protocol in WireProtocol:
                result.floods.append(await measuring.flood(protocol, turn, result))
                _say(result.floods[-1].line())
        return result


@asynccontextmanager
async def _served(shape: str, options: Sequence[str]) -> AsyncIterator[tuple[ServerProcess, list[str]]]:
    """Run a server with a key for each caller."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medley-bench-")))
        (folder / "data").mkdir()
        ring = KeyRing(f"sqlite:///{folder / 'data' / 'registry.db'}")
        keys = [ring.create(name, scopes={Scope.INFER}, change=Change(who="benchmark"))[0] for name in _TENANTS]
        ring.close()
        options = (*options, "--model", str(served_base(folder / "base", shape)))
        yield await stack.enter_async_context(ServerProcess(ServerConfig(folder, options=options))), keys


class _Measuring:
    """All runs, from the first to the last."""

    def __init__(self, plan: Plan, server: ServerProcess, keys: Sequence[str]) -> None:
        self._plan, self._server = plan, server
        self._credentials = [Credentials(key) for key in keys]

    async def capacity(self) -> OverloadResult:
        plan = self._plan
        scenario = self._scenario(WireProtocol.GRPC, _PATIENT_S)
        scenario = replace(scenario, arrivals=ClosedLoop(num_users=plan.num_users))
        # What was answered in the measured time, whenever it was sent: users are always at it.
        answered = [
            each
            for each in await self._all_sent(scenario, 0)
            if each.outcome is Outcome.COMPLETED and 0 <= each.ended_s < plan.seconds
        ]
        if not answered:
            raise RuntimeError(f"no request was answered within {plan.seconds:g} s; give --seconds more")
        median_ms = float(np.median([(each.ended_s - each.sent_s) * 1e3 for each in answered]))
        return OverloadResult(len(answered) / plan.seconds, plan.slo_factor * median_ms)

    async def load(self, protocol: WireProtocol, load: float, result: OverloadResult) -> LoadRun:
        scenario = self._scenario(protocol, result.slo_ms / 1e3, load * result.capacity)
        records = await self._sent(scenario, 0)
        slo = Slo(e2e_ms=result.slo_ms)
        goodput = sum(map(slo.is_met_by, records)) / self._plan.seconds
        return LoadRun.of(protocol.value, load, goodput, records)

    async def flood(self, protocol: WireProtocol, turn: int, result: OverloadResult) -> FloodRun:
        plan = self._plan
        light = self._scenario(protocol, _PATIENT_S, plan.light_share * result.capacity)
        light = replace(light, seed=plan.seed + turn)
        flood = self._scenario(protocol, result.slo_ms / 1e3, plan.flood_load * result.capacity)
        # A process of its own, so that the light caller's clock is not the flood's.
        flood = replace(flood, seed=plan.seed + 1000 + turn, client=ClientLimits(num_processes=2, max_in_flight=2000))
        alone = await self._sent(light, 0)
        beside, others = await asyncio.gather(self._sent(light, 0), self._sent(flood, 1))
        return FloodRun.of(protocol.value, turn, alone=alone, beside=beside, flood=others, seconds=plan.seconds)

    def _scenario(self, protocol: WireProtocol, timeout_s: float, rate: float = 1.0) -> Scenario:
        plan = self._plan
        return Scenario(
            name="overload",
            seed=plan.seed,
            duration_s=plan.seconds,
            target=Target(
                protocol=Protocol(protocol.value),
                address=self._server.address(protocol),
                stream=False,
                timeout_s=timeout_s,
            ),
            arrivals=Poisson(rate=rate),
            adapters=Weighted(mix=plan.mix),
            lengths=Lengths(output=Fixed(value=plan.max_new_tokens)),
            warm_up=WarmUp(rounds=0, duration_s=plan.warm_up_s),
            client=ClientLimits(max_in_flight=2000),
        )

    async def _sent(self, scenario: Scenario, tenant: int) -> list[RequestRecord]:
        """Send a scenario as a tenant and return what became of the requests after the warm-up."""
        return [record for record in await self._all_sent(scenario, tenant) if is_measured(record)]

    async def _all_sent(self, scenario: Scenario, tenant: int) -> list[RequestRecord]:
        records: list[RequestRecord] = []
        shares = deal(scenario)
        async with create_senders(shares, scenario.target, self._credentials[tenant], records.append) as senders:
            await senders.run(asyncio.get_running_loop().time() + _LEAD_S + scenario.warm_up.duration_s)
        return records


def _run(arguments: argparse.Namespace) -> None:
    given = {
        "seconds": arguments.seconds,
        "num_rounds": arguments.rounds,
        "light_share": arguments.light_share,
    }
    plan = replace(Plan(), **(QUICK if arguments.quick else {}), shape=arguments.shape)
    if plan.shape != MEDLEY_MINI:
        plan = replace(plan, mix="base")  # the shipped adapters are for the shipped base
    plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
    parts = [arguments.part] if arguments.part else ["overload", "flood"]
    result = asyncio.run(measure(plan, parts, arguments.serve_option))
    for key, figure in result.headline().items():
        _say(f"{key}: {figure:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**result.as_json(plan), **describe_machine(0)}, indent=2) + "\n")
    if arguments.plot:
        plot(result, arguments.plot / "overload.png")


def _say(line: str) -> None:
    print(line, flush=True)
