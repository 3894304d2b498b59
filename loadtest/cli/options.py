"""The options that several commands share, and what becomes of them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from loadtest.clients.base import Credentials
from loadtest.scenario import Scenario
from loadtest.scenario_file import Override, ScenarioError, load_scenario, parse_override

RUNS = Path(".medley") / "loadtest"
"""Where runs are kept unless told otherwise."""

ScenarioOption = Annotated[str, typer.Option(help="A YAML file, or the name of a shipped scenario.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="key.of.it=value, written over the scenario; the value is YAML.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="host:port of the server; default 127.0.0.1:8000, or :50051 for gRPC.")
]
KeyOption = Annotated[str, typer.Option(envvar="MEDLEY_KEY", help="API key; the environment hides it from `ps`.")]
CaFileOption = Annotated[
    Path | None, typer.Option(envvar="MEDLEY_CA_FILE", help="Speak TLS and trust this authority (PEM).")
]
OutOption = Annotated[
    Path | None, typer.Option(help=f"Folder for records, report and pictures; default one of its own in {RUNS}.")
]


def scenario_of(source: str, given: Sequence[Override], settings: Sequence[str], console: Console) -> Scenario:
    """Return the scenario with what was given written over it.

    Raises:
        typer.Exit: With status 2, its faults having been told.
    """
    try:
        return load_scenario(source, [*given, *map(parse_override, settings)])
    except ScenarioError as error:
        fail(console, str(error), 2)


def credentials_of(key: str, ca_file: Path | None) -> Credentials:
    """Return what the client proves itself by.

    Raises:
        typer.BadParameter: If the authority's certificate cannot be read.
    """
    try:
        return Credentials(key, ca_file.read_text(encoding="utf-8") if ca_file else "")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {ca_file}: {error}") from error


def folder_of(out: Path | None, scenario: Scenario) -> Path:
    """Return the run's folder, not yet made."""
    return out or RUNS / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def fail(console: Console, message: str, status: int) -> NoReturn:
    """Say what went wrong and end.

    Raises:
        typer.Exit: With the status.
    """
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status)
