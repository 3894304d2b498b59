"""``python -m benchmarks ray``: what a deployment on Ray Serve costs a request, and what a second replica brings.

The fake engine does nothing but wait, so that the figures are of what stands before an engine. Needs ``--postgres``, an
empty database, where there are two replicas.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

_STARTS_WITHIN_S = 300.0
_POLL_S = 0.2
_STEP_S = 0.05
_NUM_ROWS = 8
_TEXT = "one two three"
_SERVE, _ONE, _TWO = "medley serve", "one replica", "two replicas"


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser("ray", help="a deployment on Ray Serve beside one server")
    parser.add_argument("--postgres", help="URL of an empty database; without one, two replicas are left out")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    sides = (_SERVE, _ONE, _TWO) if arguments.postgres else (_SERVE, _ONE)
    figures = {side: asyncio.run(_measure(side, arguments.postgres, arguments.seconds)) for side in sides}
    table = Table(title="a deployment on Ray Serve, fake engine")
    for column in ("side", "alone: p50 ms", "alone: p99 ms", "full: requests/s"):
        table.add_column(column, justify="right")
    for side, figure in figures.items():
        table.add_row(side, *(f"{figure[key]:.2f}" for key in ("alone_p50_ms", "alone_p99_ms", "requests_per_s")))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


async def _measure(side: str, postgres: str | None, seconds: float) -> dict[str, float]:
    async with _server(side, postgres, step_time_s=0.0) as url:
        alone_ms = await _alone(url, seconds)
    async with _server(side, postgres, step_time_s=_STEP_S) as url:
        rate = await _full(url, (2 if side == _TWO else 1) * _NUM_ROWS * 2, seconds)
    percentiles = statistics.quantiles(alone_ms, n=100)
    return {"alone_p50_ms": percentiles[49], "alone_p99_ms": percentiles[98], "requests_per_s": rate}


@asynccontextmanager
async def _server(side: str, postgres: str | None, step_time_s: float) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="medley-ray-") as name:
        folder = Path(name)
        settings: dict[str, Any] = {
            "port": 0,
            "grpc_port": 0,
            "data_dir": str(folder / "data"),
            "library": str(folder / "none"),
            "ready_file": str(folder / "ready.json"),
            "evaluation": {"warm_at_start": False, "sample_rate": 0.0},
            "engine": {"name": "fake", "step_time_s": step_time_s, "max_num_seqs": _NUM_ROWS},
            "access": {"allow_open": True},
        }
        if side == _ONE:
            settings["ray"] = {"num_replicas": 1, "num_cpus": 0.5}
        elif side == _TWO:
            settings["ray"] = {"num_replicas": 2, "num_cpus": 0.5}
            settings |= {"registry": {"url": postgres}, "store": {"url": (folder / "store").as_uri()}}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "server", "serve", "--config", str(folder / "settings.yaml")]
        command += [] if side == _SERVE else ["--ray"]
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
            try:
                yield await _ready(process, folder)
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()


async def _ready(process: asyncio.subprocess.Process, folder: Path) -> str:
    until_s = time.monotonic() + _STARTS_WITHIN_S
    while not (folder / "ready.json").exists():
        if process.returncode is not None or time.monotonic() > until_s:
            raise SystemExit("the server does not start:\n" + (folder / "log").read_text()[-2000:])
        await asyncio.sleep(_POLL_S)
    return "http://" + str(json.loads((folder / "ready.json").read_text())["http"])


async def _alone(url: str, seconds: float) -> list[float]:
    """Return how long requests take, one at a time; the first second is not counted."""
    took_ms: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        began_s = time.monotonic()
        while (sent_s := time.monotonic()) < began_s + seconds + 1:
            (await client.post("/v1/summarize", json={"text": _TEXT})).raise_for_status()
            if sent_s > began_s + 1:
                took_ms.append((time.monotonic() - sent_s) * 1e3)
    return took_ms


async def _full(url: str, num_callers: int, seconds: float) -> float:
    """Return answers per second with more callers than rows; the first two seconds are not counted."""
    num_answers = 0
    began_s = time.monotonic()

    async def call(client: httpx.AsyncClient) -> None:
        nonlocal num_answers
        while time.monotonic() < began_s + seconds + 2:
            (await client.post("/v1/summarize", json={"text": _TEXT})).raise_for_status()
            num_answers += began_s + 2 < time.monotonic() < began_s + seconds + 2

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=num_callers)) as client:
        await asyncio.gather(*(call(client) for _ in range(num_callers)))
    return num_answers / seconds
