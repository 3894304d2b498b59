"""``python -m benchmarks lease``: what it costs a request to find its adapter, lease it and give it back.

Everything is known and verified already, as for all requests but the first of a version. On SQLite, and on PostgreSQL
if a database is given; with few adapters and with thousands. The caller has name patterns of its own, the longer way.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from adapters.manifest import AdapterKind, AdapterManifest
from adapters.registry import DEFAULT_ALIAS, Change, Registry
from adapters.store import AdapterStore
from benchmarks.machine import describe_machine
from server.core.principal import Principal, Scope
from server.service.directory import AdapterDirectory

_CALLER = Principal("key:benchmark", frozenset({Scope.INFER}), ("other-*", "adapter-*"))
_NUM_WARM = 1000


@dataclass(frozen=True, slots=True)
class LeaseFigures:
    """What was measured.

    Attributes:
        database: ``sqlite`` or ``postgresql``.
        num_adapters: Adapters in the registry.
        num_requests: Leases taken.
        median_us: Microseconds to resolve, lease and release; half of the requests took less.
        p99_us: 99 in 100 took less.
    """

    database: str
    num_adapters: int
    num_requests: int
    median_us: float
    p99_us: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``lease`` to the benchmarks' command line."""
    parser = commands.add_parser("lease", help="what resolving and leasing an adapter costs a request")
    parser.add_argument("--postgres", metavar="URL", help="an empty PostgreSQL database, to measure on it too")
    parser.add_argument("--num-adapters", type=int, nargs="+", default=[5, 2000])
    parser.add_argument("--num-requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        folder = Path(name)
        store = AdapterStore(str(folder / "store"), folder / "local")
        digests = [_put(store, folder / "upload", number) for number in range(max(arguments.num_adapters))]
        urls = {"sqlite": f"sqlite:///{folder / 'registry.db'}"}
        if arguments.postgres:
            urls["postgresql"] = arguments.postgres
        figures = [
            figure
            for database, url in urls.items()
            for figure in measure_database(database, url, store, digests, arguments)
        ]
    if arguments.json:
        results = {"lease": [asdict(figure) for figure in figures], **describe_machine(1)}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def measure_database(
    database: str, url: str, store: AdapterStore, digests: Sequence[str], arguments: argparse.Namespace
) -> list[LeaseFigures]:
    """Fill one registry step by step and measure at each size.

    Raises:
        AdapterError: If the database cannot be used.
    """
    registry = Registry(url)
    figures = []
    try:
        for num_adapters in sorted(arguments.num_adapters):
            for number in range(len(registry.list()), num_adapters):
                _register(registry, number, digests[number])
            took_us = asyncio.run(_take_leases(registry, store, num_adapters, arguments))
            p99_us = statistics.quantiles(took_us, n=100)[98]
            figure = LeaseFigures(database, num_adapters, len(took_us), statistics.median(took_us), p99_us)
            print(f"{database}, {num_adapters} adapters: {figure.median_us:.1f} µs, p99 {p99_us:.1f} µs", flush=True)
            figures.append(figure)
    finally:
        registry.close()
    return figures


async def _take_leases(
    registry: Registry, store: AdapterStore, num_adapters: int, arguments: argparse.Namespace
) -> list[float]:
    directory = AdapterDirectory(registry, store)
    draws = random.Random(arguments.seed)  # noqa: S311 - chooses names, no secrets
    for number in range(num_adapters):
        directory.release(await directory.lease(_CALLER, (_name(number),)))
    spellings = ("{}", "{}@" + DEFAULT_ALIAS, "{}:1")
    took_us = []
    for turn in range(_NUM_WARM + arguments.num_requests):
        reference = draws.choice(spellings).format(_name(draws.randrange(num_adapters)))
        begun_ns = time.perf_counter_ns()
        adapters = await directory.lease(_CALLER, (reference,))
        directory.release(adapters)
        if turn >= _NUM_WARM:
            took_us.append((time.perf_counter_ns() - begun_ns) / 1000)
    directory.close()
    return took_us


def _name(number: int) -> str:
    return f"adapter-{number}"


def _put(store: AdapterStore, folder: Path, number: int) -> str:
    """Keep bytes of their own for an adapter; a lease does not look into them."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(number.to_bytes(8, "little"))
    return store.put(folder)


def _register(registry: Registry, number: int, digest: str) -> None:
    change = Change("benchmark")
    name = _name(number)
    manifest = AdapterManifest(name, AdapterKind.LORA, rank=8, prompt_template="Summarize: {{ text }}")
    begun = registry.begin_version(name, change, lease_s=60.0)
    registry.complete_version(
        name,
        begun.version,
        digest=digest,
        manifest=manifest,
        size_bytes=10,
        alias=DEFAULT_ALIAS,
        tags=(),
        change=change,
    )
