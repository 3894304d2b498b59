"""``medley loadtest``: arguments in, tables and a JSON file out. Knows neither statistics nor protocols."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.arrivals import schedule
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, Credentials, MedleyClient
from loadtest.examples import SHIPPED_EXAMPLES, read_examples
from loadtest.metrics import Slo
from loadtest.records import Outcome, RequestRecord
from loadtest.report import render, summarize_run
from loadtest.runner import Runner, RunnerConfig
from loadtest.workload import MixEntry, PlannedRequest, parse_mix, plan

_DEFAULT_ADDRESSES = {WireProtocol.HTTP: "127.0.0.1:8000", WireProtocol.GRPC: "127.0.0.1:50051"}

_DEFAULT_DURATION_S = 10.0

app = typer.Typer(help="Measure a running server under open-loop load.", invoke_without_command=True)


@app.callback()
def loadtest(
    context: typer.Context,
    *,
    protocol: Annotated[WireProtocol, typer.Option(help="Protocol to speak.")] = WireProtocol.HTTP,
    address: Annotated[
        str | None, typer.Option(help="host:port of the server; default 127.0.0.1:8000, or :50051 for gRPC.")
    ] = None,
    key: Annotated[str, typer.Option(envvar="MEDLEY_KEY", help="API key; the environment hides it from `ps`.")] = "",
    ca_file: Annotated[
        Path | None, typer.Option(envvar="MEDLEY_CA_FILE", help="Speak TLS and trust this authority (PEM).")
    ] = None,
    rate: Annotated[float, typer.Option(help="Mean arrivals per second (Poisson).")] = 4.0,
    duration_s: Annotated[float | None, typer.Option("--duration", help="Send for this many seconds.")] = None,
    num_requests: Annotated[int | None, typer.Option(min=1, help="Send at most this many.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of arrivals, texts and mix.")] = 0,
    mix: Annotated[str, typer.Option(help="Adapters by weight: base=1,dialogsum=2,dialogsum+prompt=1.")] = "base",
    data: Annotated[Path, typer.Option(help="JSON lines with 'dialogue' or 'text'; .xz too.")] = SHIPPED_EXAMPLES,
    stream: Annotated[bool, typer.Option(help="Ask for the answer in pieces; needed for TTFT, ITL, TPOT.")] = True,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to generate.")] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Goodput: bound on TTFT.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Goodput: bound on TPOT.")] = None,
    slo_e2e_ms: Annotated[float | None, typer.Option(help="Goodput: bound on e2e.")] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Drop, and count, what would exceed this.")] = 512,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Time limit of a request, seconds.")] = 60.0,
    warmup: Annotated[int, typer.Option(min=0, help="Unmeasured rounds over the mix before the run.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Measure a running server under open-loop load: requests go out at their times, answered or not.

    Exit status: 0 if any request completed, 1 if none did, 2 if the arguments are wrong or the warm-up failed.
    """
    if not stream and (slo_ttft_ms is not None or slo_tpot_ms is not None):
        raise typer.BadParameter("bounds on TTFT and TPOT need --stream")
    if json_file is not None and not json_file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {json_file.parent}")
    if duration_s is None and num_requests is None:
        duration_s = _DEFAULT_DURATION_S
    address = address or _DEFAULT_ADDRESSES[protocol]
    try:
        kinds = parse_mix(mix)
        planned = plan(schedule(rate, seed, duration_s, num_requests), kinds, read_examples(data), seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not planned:
        raise typer.BadParameter("no request arrives within this duration at this rate")
    client = _client(protocol, address, key, ca_file)
    config = RunnerConfig(stream, timeout_s, max_in_flight, max_new_tokens)
    console = Console()
    try:
        records = asyncio.run(
            _measure(client, config, kinds=kinds, planned=planned, num_warmup_rounds=warmup, console=console)
        )
    except ClientError as error:
        console.print(f"warm-up failed at {address}: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error
    asked = _asked(context.params | {"address": address, "duration_s": duration_s})
    report = summarize_run(records, Slo(slo_ttft_ms, slo_tpot_ms, slo_e2e_ms), asked)
    console.print(render(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.total.outcomes[Outcome.COMPLETED]:
        raise typer.Exit(1)


def _client(protocol: WireProtocol, address: str, key: str, ca_file: Path | None) -> MedleyClient:
    """Return an unopened client.

    Raises:
        typer.BadParameter: If the authority's certificate cannot be read.
    """
    try:
        return create_client(protocol, address, Credentials(key, ca_file.read_text() if ca_file else ""))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {ca_file}: {error}") from error


def _asked(params: Mapping[str, object]) -> dict[str, object]:
    """Return the options as JSON values, for the report; the key stays out of it."""
    return {
        name: str(value) if isinstance(value, Path | WireProtocol) else value
        for name, value in params.items()
        if name not in {"json_file", "key"}
    }


async def _measure(
    client: MedleyClient,
    config: RunnerConfig,
    *,
    kinds: Sequence[MixEntry],
    planned: Sequence[PlannedRequest],
    num_warmup_rounds: int,
    console: Console,
) -> list[RequestRecord]:
    """Warm up, run and show progress.

    Raises:
        ClientError: If a request of the warm-up fails.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = 0
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("requests", total=len(planned))

        def advance(record: RequestRecord) -> None:
            nonlocal failed
            failed += record.outcome is not Outcome.COMPLETED
            progress.update(bar, advance=1, description=f"requests ({failed} failed)" if failed else "requests")

        async with client:
            runner = Runner(client, config, advance)
            await runner.warm_up(kinds, planned[0].text, num_warmup_rounds)
            return await runner.run(planned)
