"""``python -m benchmarks tracing``: what traces and log lines cost a request, and what they cost where they are off.

One server for each side, on the fake engine, which takes no time of its own, so that the rest of a request's way is
what is measured. All of them run at once and are asked in turn, round by round; the collector is in this process. The
processor time a server takes for a request tells more than how long it took, as other work on the machine does not
count in it.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import psutil
import yaml

from benchmarks.machine import describe_machine

_START_TIMEOUT_S = 120.0
_BODY = {"text": "A: Where have you been? B: In the garden, all day.", "max_new_tokens": 32}
_NOBODY = "http://127.0.0.1:9/v1/traces"


@dataclass(frozen=True, slots=True)
class SideFigures:
    """What was measured of one side: medians over the rounds.

    Attributes:
        side: What was on.
        cpu_us: Processor time of the server for a request, in microseconds.
        cpu_over_off: The same over that of the side without anything, round by round.
        requests_per_s: Requests answered.
        p50_ms: Half of the requests took less.
    """

    side: str
    cpu_us: float
    cpu_over_off: float
    requests_per_s: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class _Round:
    cpu_us: float
    requests_per_s: float
    p50_ms: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``tracing`` to the benchmarks' command line."""
    parser = commands.add_parser("tracing", help="what traces and log lines cost a request")
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=_SIDES, help="the first one is compared with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num-requests", type=int, default=400, help="of each side in a round")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medley-bench-")))
        endpoint = stack.enter_context(_collector())
        servers = {
            side: stack.enter_context(_server(folder / side, settings))
            for side, settings in _sides(endpoint).items()
            if side in arguments.sides
        }
        rounds = asyncio.run(_measure(servers, arguments))
    figures = summarize(rounds)
    for figure in figures:
        print(
            f"{figure.side:<12} {figure.cpu_us:7.0f} µs ({figure.cpu_over_off:.3f})  "
            f"{figure.requests_per_s:6.0f} requests/s  p50 {figure.p50_ms:.2f} ms"
        )
    if arguments.json:
        results = {"tracing": [asdict(figure) for figure in figures], **describe_machine(1)}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _sides(endpoint: str) -> dict[str, dict[str, object]]:
    return {
        "off": {},
        "log-lines": {"log": {"format": "json", "requests": True}},
        "one-percent": {"tracing": {"endpoint": endpoint, "sample_rate": 0.01}},
        "traces": {"tracing": {"endpoint": endpoint}},
        "unreachable": {"tracing": {"endpoint": _NOBODY}},
    }


_SIDES = tuple(_sides(""))


def summarize(rounds: Mapping[str, list[_Round]]) -> list[SideFigures]:
    """Return each side's medians; the first side is what the others are held against."""
    off = next(iter(rounds.values()))
    return [
        SideFigures(
            side=side,
            cpu_us=statistics.median(each.cpu_us for each in measured),
            cpu_over_off=statistics.median(a.cpu_us / b.cpu_us for a, b in zip(measured, off, strict=True)),
            requests_per_s=statistics.median(each.requests_per_s for each in measured),
            p50_ms=statistics.median(each.p50_ms for each in measured),
        )
        for side, measured in rounds.items()
    ]


async def _measure(servers: Mapping[str, tuple[str, int]], arguments: argparse.Namespace) -> dict[str, list[_Round]]:
    rounds: dict[str, list[_Round]] = {side: [] for side in servers}
    connector = aiohttp.TCPConnector(limit=arguments.concurrency)
    async with aiohttp.ClientSession(connector=connector) as client:
        for turn in range(arguments.rounds + 1):
            sides = list(servers.items())
            # Whoever goes first does so in no two rounds running.
            for side, (address, pid) in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                measured = await _round(client, address, pid, arguments)
                if turn:
                    rounds[side].append(measured)
    return rounds


async def _round(client: aiohttp.ClientSession, address: str, pid: int, arguments: argparse.Namespace) -> _Round:
    took_s: list[float] = []
    left = iter(range(arguments.num_requests))

    async def ask() -> None:
        for _ in left:
            begun_s = time.perf_counter()
            async with client.post(f"http://{address}/v1/summarize", json=_BODY) as answer:
                await answer.read()
                assert answer.status == 200
            took_s.append(time.perf_counter() - begun_s)

    process = psutil.Process(pid)
    before, begun_s = process.cpu_times(), time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(arguments.concurrency)))
    wall_s = time.perf_counter() - begun_s
    # What was put off to the background belongs to these requests, too.
    await asyncio.sleep(1.2)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return _Round(cpu_s / len(took_s) * 1e6, len(took_s) / wall_s, statistics.median(took_s) * 1e3)


@contextmanager
def _server(folder: Path, settings: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    folder.mkdir()
    ready, config = folder / "ready.json", folder / "settings.yaml"
    own = {"port": 0, "grpc_port": 0, "data_dir": str(folder / "data"), "library": str(folder / "none")}
    more = {"ready_file": str(ready), "evaluation": {"warm_at_start": False}}
    config.write_text(yaml.safe_dump({**own, **more, **settings}))
    command = [sys.executable, "-m", "server", "serve", "--engine", "fake", "--config", str(config)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=log, stderr=log
        ) as process,
    ):
        try:
            give_up_s = time.monotonic() + _START_TIMEOUT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > give_up_s:
                    raise RuntimeError(f"the server did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.05)
            yield json.loads(ready.read_text())["http"], process.pid
        finally:
            process.terminate()


@contextmanager
def _collector() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        server.shutdown()
