"""``medley loadtest``: arguments in, tables and a folder of files out. Knows neither statistics nor protocols."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.cli import comparing, sweeping
from loadtest.cli.options import (
    AddressOption,
    CaFileOption,
    KeyOption,
    OutOption,
    ScenarioOption,
    SetOption,
    credentials_of,
    folder_of,
    scenario_of,
)
from loadtest.cli.running import report_on, run_once
from loadtest.clients.target import Protocol
from loadtest.records import Outcome
from loadtest.scenario_file import Override

app = typer.Typer(help="Measure a running server under load.", invoke_without_command=True)
app.command("sweep")(sweeping.sweep)
app.command("compare")(comparing.compare)
app.command("report")(comparing.report)


@app.callback()
def loadtest(
    context: typer.Context,
    *,
    scenario: ScenarioOption = "default",
    settings: SetOption = (),
    address: AddressOption = None,
    key: KeyOption = "",
    ca_file: CaFileOption = None,
    out: OutOption = None,
    protocol: Annotated[Protocol | None, typer.Option(help="Protocol to speak.")] = None,
    rate: Annotated[float | None, typer.Option(help="Mean arrivals per second.")] = None,
    duration_s: Annotated[float | None, typer.Option("--duration", help="Send for this many seconds.")] = None,
    num_requests: Annotated[int | None, typer.Option(help="Send at most this many.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.")] = None,
    mix: Annotated[str | None, typer.Option(help="Adapters by weight: base=1,dialogsum=2,dialogsum+prompt=1.")] = None,
    data: Annotated[Path | None, typer.Option(help="JSON lines with 'dialogue' or 'text'; .xz too.")] = None,
    stream: Annotated[bool | None, typer.Option(help="Ask for answers in pieces; needed for TTFT, ITL, TPOT.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Goodput: bound on TTFT.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Goodput: bound on TPOT.")] = None,
    slo_e2e_ms: Annotated[float | None, typer.Option(help="Goodput: bound on e2e.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Drop, and count, what would exceed this.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Time limit of a request, seconds.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Unmeasured rounds over the adapters before the run.")] = None,
) -> None:
    """Run a scenario against a running server. The options are written over the scenario, --set last.

    Exit status: 0 if any request completed, 1 if none did, 2 if the scenario is wrong, nobody listens or the warm-up
    failed, 3 if the client was too late to give figures, 4 if the server went away, 130 if interrupted.
    """
    options: list[Override] = [
        ("target.protocol", protocol and protocol.value),
        ("target.address", address),
        ("arrivals.rate", rate),
        ("duration_s", duration_s),
        ("num_requests", num_requests),
        ("seed", seed),
        ("adapters", mix and {"kind": "mix", "mix": mix}),
        ("data", data and str(data.absolute())),
        ("target.stream", stream),
        ("lengths.output", max_new_tokens and {"kind": "fixed", "value": max_new_tokens}),
        ("slo.ttft_ms", slo_ttft_ms),
        ("slo.tpot_ms", slo_tpot_ms),
        ("slo.e2e_ms", slo_e2e_ms),
        ("client.max_in_flight", max_in_flight),
        ("target.timeout_s", timeout_s),
        ("warm_up.rounds", warmup),
    ]
    given = [(name, value) for name, value in options if value is not None]
    if context.invoked_subcommand is not None:
        if given or settings or out:
            raise typer.BadParameter(f"options go behind {context.invoked_subcommand!r}")
        return
    if num_requests is not None and duration_s is None:
        # A number given alone lifts the limit that the scenario sets in seconds.
        given.append(("duration_s", None))
    console = Console()
    asked = scenario_of(scenario, given, settings, console)
    recording = run_once(asked, credentials_of(key, ca_file), folder_of(out, asked), console)
    summed_up = report_on(recording, console)
    if not summed_up.total.outcomes[Outcome.COMPLETED]:
        raise typer.Exit(1)
