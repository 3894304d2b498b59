"""``python -m loadtest.soak``: arguments in, a verdict and a folder of files out."""

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.cli.options import OutOption, SetOption, fail, folder_of, scenario_of
from loadtest.clients import WireProtocol
from loadtest.clients.base import ClientError
from loadtest.demo.server import ServerConfig, ServerFailedError, ServerProcess
from loadtest.presence import ServerGoneError
from loadtest.senders import WorkerLostError
from loadtest.soak.processes import ProcessGoneError
from loadtest.soak.run import Soak
from loadtest.soak.showing import show
from loadtest.soak.traffic import Watched
from loadtest.soak.verdict import verdict_of
from loadtest.variants import SourceError

# Fewer places for adapters than adapters that are asked for, on the device and in host memory, so that some must always
# go and memory is full soon.
_OWN_SETTINGS = {"engine": {"max_loras": 4, "max_host_adapter_bytes": 64 << 20}}
_TOLD_EVERY_S, _START_S = 60.0, 300.0

app = typer.Typer(add_completion=False)


@app.command()
def soak(
    *,
    duration_s: Annotated[
        float | None, typer.Option("--duration", help="Seconds; the scenario's 1800 if not given.")
    ] = None,
    scenario: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped scenario.")] = "soak",
    settings: SetOption = (),  # type: ignore[assignment]
    every_s: Annotated[float, typer.Option("--every", help="Seconds between two looks at the processes.")] = 2.0,
    ready_file: Annotated[
        Path | None, typer.Option(help="Of a running `medley serve --ready-file`; else one is started.")
    ] = None,
    serve_option: Annotated[
        list[str], typer.Option(help="An option of the `medley serve` that is started, as --x=y; as often as needed.")
    ] = (),  # type: ignore[assignment]
    out: OutOption = None,
) -> None:
    """Send mixed traffic and changes of adapters for a long time, and say whether the server stayed as it was.

    Exit status: 0 if it did, 1 if not, 2 if the scenario is wrong or the server does not start, 4 if it went away, 130
    if interrupted. What was seen is in the folder in any case.
    """
    console = Console()
    given = [("duration_s", duration_s)] if duration_s is not None else []
    asked = scenario_of(scenario, given, settings, console)
    folder = folder_of(out, asked)
    runs: list[Soak] = []

    def begin(server: Watched) -> Soak:
        runs.append(Soak(asked, server, every_s, folder, _Teller(console)))
        return runs[0]

    problem, status = "", 0
    try:
        asyncio.run(_run(_server(ready_file, serve_option), begin))
    except (ServerGoneError, ProcessGoneError, WorkerLostError) as error:
        problem, status = str(error), 4
    except KeyboardInterrupt:
        problem, status = "interrupted", 130
    except (ServerFailedError, ClientError, SourceError, ValueError, OSError, ImportError) as error:
        problem, status = str(error), 2
    for run in runs:
        verdict = verdict_of(run)
        show(run, verdict, asked, folder, console)
        status = status or int(not verdict.passed)
    if problem:
        fail(console, problem, status)
    raise typer.Exit(status)


async def _run(running: AbstractAsyncContextManager[Watched], begin: Callable[[Watched], Soak]) -> None:
    async with running as server:
        await begin(server).run()


@contextlib.asynccontextmanager
async def _server(ready_file: Path | None, options: Sequence[str]) -> AsyncIterator[Watched]:
    if ready_file is not None:
        ready = json.loads(await asyncio.to_thread(ready_file.read_text, encoding="utf-8"))
        yield Watched(ready["http"], ready["grpc"], ready["pid"])
        return
    with tempfile.TemporaryDirectory(prefix="medley-soak-") as name:
        config = Path(name) / "medley.yaml"
        config.write_text(json.dumps(_OWN_SETTINGS), encoding="utf-8")
        options = ("--config", str(config), *options)
        async with ServerProcess(ServerConfig(Path(name), options=options, start_timeout_s=_START_S)) as own:
            yield Watched(own.address(WireProtocol.HTTP), own.address(WireProtocol.GRPC), own.pid)


class _Teller:
    """Says once a minute how it goes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told_s = 0.0

    def __call__(self, run: Soak) -> None:
        sample = run.samples[-1]
        if sample.at_s < self._told_s + _TOLD_EVERY_S:
            return
        self._told_s = sample.at_s
        num_failed = sum(each.e2e_ms is None for each in run.ended)
        self._console.print(
            f"{sample.at_s:.0f} s: {len(run.ended)} requests, {num_failed} failed, {sample.rss_bytes / 2**20:.0f} MiB, "
            f"{sample.num_fds} file handles, {sample.num_threads} threads",
            highlight=False,
        )


if __name__ == "__main__":
    # So that a server that was started is ended, too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    app()
