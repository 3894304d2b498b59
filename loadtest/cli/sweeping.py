"""``medley loadtest sweep``: one scenario at rising rates, until the server no longer keeps up."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.arrivals import Constant, Gamma, Poisson
from loadtest.cli.options import (
    AddressOption,
    CaFileOption,
    KeyOption,
    OutOption,
    ScenarioOption,
    SetOption,
    credentials_of,
    fail,
    folder_of,
    scenario_of,
)
from loadtest.cli.running import figures_of, run_once
from loadtest.cli.showing import write_page
from loadtest.clients.base import Credentials
from loadtest.page import Page
from loadtest.pictures import throughput_latency
from loadtest.report import Report
from loadtest.scenario import Scenario
from loadtest.scenario_file import as_json
from loadtest.sweep import SweepConfig, find_knee
from loadtest.tables import sweep_table


def sweep(
    *,
    scenario: ScenarioOption = "default",
    settings: SetOption = (),
    address: AddressOption = None,
    key: KeyOption = "",
    ca_file: CaFileOption = None,
    out: OutOption = None,
    factor: Annotated[float, typer.Option(help="From one rate to the next.")] = 1.5,
    bisections: Annotated[int, typer.Option(help="How often the last gap is halved.")] = 3,
    good_share: Annotated[float, typer.Option(help="Share of requests that must keep every SLO.")] = 0.95,
) -> None:
    """Find the knee: raise the rate from the scenario's until objectives are no longer kept, then look between.

    Exit status: 0 if a knee was found or the highest rate tried was good, 1 if not even the lowest was; else as of
    `medley loadtest`.
    """
    console = Console()
    given = [("target.address", address)] if address else []
    asked = scenario_of(scenario, given, settings, console)
    if not isinstance(asked.arrivals, Constant | Poisson | Gamma):
        fail(console, f"a sweep needs arrivals with a rate, not {asked.arrivals.kind}", 2)
    if not asked.slo.bounds_ms:
        fail(console, "a sweep needs an objective: set slo.ttft_ms, slo.tpot_ms or slo.e2e_ms", 2)
    if asked.duration_s is None:
        fail(console, "a sweep needs duration_s, so that every rate is run for as long", 2)
    try:
        config = SweepConfig(asked.arrivals.rate, factor, bisections, good_share)
    except ValueError as error:
        fail(console, str(error), 2)
    folder = folder_of(out, asked)
    measure = partial(_measure, asked, credentials_of(key, ca_file), folder, console)
    found = find_knee(config, measure)
    sentence = found.sentence(good_share, asked.slo.bounds_ms)
    console.print(sweep_table(found))
    console.print(sentence, style="bold", markup=False, highlight=False, soft_wrap=True)
    shown = {"config": as_json(asked), "sentence": sentence, **asdict(found)}
    (folder / "sweep.json").write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    page = partial(
        Page, title=f"Sweep: {asked.name}", sentences=[sentence], tables=[sweep_table(found)], asked=as_json(asked)
    )
    write_page(folder, {"throughput-latency": lambda: throughput_latency(found)}, page, console)
    console.print(f"Kept in {folder}", markup=False, highlight=False, soft_wrap=True)
    if found.knee is None:
        raise typer.Exit(1)


def _measure(asked: Scenario, credentials: Credentials, folder: Path, console: Console, rate: float) -> Report:
    """Run the scenario at a rate, in a folder of its own."""
    console.print(f"{rate:.3g} requests/s", highlight=False)
    at_rate = replace(asked, arrivals=replace(asked.arrivals, rate=rate))  # type: ignore[type-var]
    recording = run_once(at_rate, credentials, folder / f"rate-{rate:.4g}", console)
    return figures_of(recording, console)
