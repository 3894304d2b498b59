"""``python -m benchmarks slora``: S-LoRA's workload on ``medley-mini``, 5 to 2,000 adapters, HTTP and gRPC, one report.

For each number of adapters a server that has just so many, put into its registry and store before it starts; ranks 8,
16, 32 and 64 by turns, random weights. Over each protocol two loads: the shipped scenario ``slora``, an open loop with
a process of its own for each adapter, for latency and the objectives kept; and as many users as there is room for, who
ask for the same, for throughput.

Source:
    S-LoRA, https://arxiv.org/abs/2311.03285, section 7: workload and ranks (its setting S2, with q and v as targets
    here instead of q, k, v and o).
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

from rich.console import Console

from benchmarks.bulk import put_in_bulk, register_in_bulk
from benchmarks.machine import describe_machine
from benchmarks.many_loras import write_many_loras
from benchmarks.slora_report import OPEN, SATURATED, SLoraPoint, write_report
from loadtest.clients import WireProtocol
from loadtest.clients.target import Protocol
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.recording import Recording
from loadtest.report import summarize_run
from loadtest.scenario import Observe, Scenario
from loadtest.scenario_file import as_json, from_json, load_scenario
from loadtest.session import Session
from loadtest.sweep import point_of
from loadtest.trust import LateClientError, check_lag
from server.engine.base import ResolvedAdapter
from server.settings import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        counts: Numbers of adapters, smallest first.
        ranks: Ranks of the adapters, by turns.
        rate: Requests per second of the open loop.
        num_users: Requests always in flight for throughput.
        seconds: Length of an open loop, after a warm-up.
        saturated_seconds: Length of the other load, likewise.
        num_slots: Adapters resident on the device at once.
        num_processes: Processes that send.
        engine: ``native``, or ``fake`` for what the server alone makes of so many adapters.
    """

    counts: tuple[int, ...] = (5, 20, 100, 500, 2000)
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    rate: float = 8.0
    num_users: int = 32
    seconds: float = 20.0
    saturated_seconds: float = 10.0
    num_slots: int = 32
    num_processes: int = 1
    engine: str = "native"


QUICK = {"counts": (2, 10), "seconds": 3.0, "saturated_seconds": 2.0, "num_slots": 4, "num_users": 4}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``slora`` to the benchmarks' command line."""
    parser = commands.add_parser("slora", help="S-LoRA's workload by number of adapters, over HTTP and gRPC")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of adapters (default 5 20 100 500 2000)")
    parser.add_argument("--rate", type=float, help="requests per second of the open loop (default 8)")
    parser.add_argument("--seconds", type=float, help="length of an open loop (default 20)")
    parser.add_argument("--users", type=int, help="requests in flight for throughput (default 32)")
    parser.add_argument("--engine", choices=["native", "fake"], help="default native")
    parser.add_argument("--quick", action="store_true", help="a few adapters and seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("slora"), help="folder of the report (default slora)")
    parser.set_defaults(run=_run)


def run_slora(plan: Plan) -> list[SLoraPoint]:
    """Run every load, printing each as it ends.

    Raises:
        ServerFailedError: If a server does not start or does not end as it should.
        RuntimeError: If a load was not answered.
    """
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        folder = Path(name)
        adapters = write_many_loras(folder / "adapters", DEFAULT_MODEL, max(plan.counts), ranks=plan.ranks)
        digests = put_in_bulk(folder / "store", adapters)
        points = []
        for count in plan.counts:
            run = folder / f"run-{count}"
            register_in_bulk(run / "data" / "registry.db", DEFAULT_MODEL, adapters[:count], digests)
            points += asyncio.run(_measure(plan, run, folder / "store", adapters[:count]))
        return points


async def _measure(plan: Plan, folder: Path, store: Path, adapters: Sequence[ResolvedAdapter]) -> list[SLoraPoint]:
    points = []
    async with _server(plan, folder, store) as server:
        for protocol in WireProtocol:
            scenario = scenario_of(plan, len(adapters), Protocol(protocol.value), server.address(protocol))
            scenario = replace(scenario, observe=Observe(address=server.address(WireProtocol.HTTP)))
            for load, asked in ((OPEN, scenario), (SATURATED, saturated(plan, scenario))):
                points.append(await _point(len(adapters), load, asked))
                print(points[-1].line(), flush=True)
    return points


@asynccontextmanager
async def _server(plan: Plan, folder: Path, store: Path) -> AsyncIterator[ServerProcess]:
    settings = {
        "engine": {"name": plan.engine, "model": str(DEFAULT_MODEL), "max_loras": plan.num_slots},
        "store": {"url": str(store)},
        "library": str(folder / "none"),
        "evaluation": {"warm_at_start": False},
    }
    config = folder / "medley.yaml"
    config.write_text(json.dumps(settings))
    async with ServerProcess(ServerConfig(folder, options=("--config", str(config)))) as server:
        yield server


def scenario_of(plan: Plan, count: int, protocol: Protocol, address: str) -> Scenario:
    """Return the shipped scenario for so many adapters that are there already."""
    return load_scenario(
        "slora",
        [
            ("name", f"slora-{count}"),
            ("duration_s", plan.seconds),
            ("target", {"protocol": protocol.value, "address": address}),
            ("arrivals.rate", plan.rate),
            ("adapters.number", count),
            ("adapters.pattern", "many-{}"),
            ("prepare", None),
            ("warm_up.duration_s", 4.0),
            ("client.num_processes", plan.num_processes),
        ],
    )


def saturated(plan: Plan, scenario: Scenario) -> Scenario:
    """Return the same as a closed loop."""
    changed = {"kind": "closed", "num_users": plan.num_users, "think_s": 0.0}
    asked = as_json(scenario) | {"arrivals": changed, "duration_s": plan.saturated_seconds}
    return from_json(asked)


async def _point(count: int, load: str, scenario: Scenario) -> SLoraPoint:
    recording = Recording(scenario, None)
    await Session(recording).run()
    report = summarize_run(recording.records, scenario.slo, as_json(scenario), readings=recording.readings)
    if not report.total.outcomes["completed"]:
        raise RuntimeError(f"no request was answered: {dict(report.error_examples)}")
    point = point_of(0.0, report, 1.0)
    try:
        check_lag(recording.records, scenario.client)
        is_late = False
    except LateClientError:
        is_late = True
    return SLoraPoint(
        num_adapters=count,
        protocol=scenario.target.protocol.value,
        load=load,
        num_requests=sum(report.total.outcomes.values()),
        num_completed=report.total.outcomes["completed"],
        num_asked=len(report.adapters),
        requests_per_s=report.total.rates["requests_per_s"],
        tokens_per_s=report.total.rates["output_tokens_per_s"],
        ttft_p50_ms=point.latencies_ms.get("ttft_p50"),
        ttft_p99_ms=point.latencies_ms.get("ttft_p99"),
        e2e_p50_ms=point.latencies_ms.get("e2e_p50"),
        slo_attainment=point.good_share,
        num_loads=report.num_adapter_loads,
        client_was_late=is_late,
    )


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    given = {
        "counts": tuple(sorted(arguments.counts)) if arguments.counts else None,
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "num_users": arguments.users,
        "engine": arguments.engine,
    }
    base = replace(Plan(), **(QUICK if arguments.quick else {}))
    return replace(base, **{key: value for key, value in given.items() if value is not None})


def _run(arguments: argparse.Namespace) -> None:
    plan, begun_s = plan_of(arguments), time.monotonic()
    points = run_slora(plan)
    asked = as_json(scenario_of(plan, plan.counts[-1], Protocol.HTTP, ""))
    shown = {"plan": asdict(plan), **describe_machine(0), "scenario": asked}
    write_report(points, shown, arguments.out, Console())
    print(f"took {time.monotonic() - begun_s:.0f} s; the report is in {arguments.out}", flush=True)
