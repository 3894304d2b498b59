"""Runs a scenario for a command: shows progress, tells how it ended, and writes what there is to write."""

import asyncio
import json
import ssl
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.cli.options import fail
from loadtest.cli.showing import write_page
from loadtest.clients.base import ClientError, Credentials
from loadtest.page import Page
from loadtest.pictures import latency_cdf, timeline
from loadtest.presence import ServerGoneError
from loadtest.recording import Recording
from loadtest.records import Outcome, RequestRecord
from loadtest.report import Report, summarize_run
from loadtest.scenario import Scenario
from loadtest.scenario_file import as_json
from loadtest.senders import WorkerLostError
from loadtest.session import Session
from loadtest.tables import render, tables_of
from loadtest.trust import LateClientError, check_lag
from loadtest.variants import SourceError


def run_once(scenario: Scenario, credentials: Credentials, folder: Path | None, console: Console) -> Recording:
    """Run a scenario, showing progress.

    Args:
        scenario: What to run.
        credentials: For a server that wants a key or speaks TLS.
        folder: Where to keep what is seen.
        console: Where to tell it.

    Raises:
        typer.Exit: If it ended badly; what went wrong was told, and what was seen is in the folder.
    """
    recording = Recording(scenario, folder)
    address = scenario.target.full_address
    try:
        with recording, _Bar(console) as bar:
            session = Session(recording, credentials, bar.count, bar.prepare)
            bar.begin(session.num_planned)
            asyncio.run(session.run())
    except ServerGoneError as error:
        # Before the first record nothing was there; after it, something went.
        fail(console, f"{error}{_saved(recording)}", 4 if recording.records else 2)
    except (WorkerLostError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        fail(console, f"{'interrupted' if interrupted else error}{_saved(recording)}", 130 if interrupted else 4)
    except (ClientError, SourceError) as error:
        fail(console, f"warm-up failed at {address}: {error}", 2)
    except ssl.SSLError as error:
        fail(console, f"cannot use the authority's certificate: {error}", 2)
    except (ValueError, OSError) as error:
        fail(console, str(error), 2)
    return recording


def report_on(recording: Recording, console: Console) -> Report:
    """Sum up a run, show it and write it beside its records.

    Raises:
        typer.Exit: If there are no figures to give: no request was measured, or the client was late.
    """
    summed_up = figures_of(recording, console)
    console.print(render(summed_up))
    if recording.folder is not None:
        shown = json.dumps(summed_up.as_json(), indent=2) + "\n"
        (recording.folder / "report.json").write_text(shown, encoding="utf-8")
        _show(recording, summed_up, recording.folder, console)
        console.print(f"Kept in {recording.folder}", markup=False, highlight=False, soft_wrap=True)
    return summed_up


def _show(recording: Recording, report: Report, folder: Path, console: Console) -> None:
    records = recording.records
    pictures = {
        "latency": lambda: latency_cdf({recording.scenario.name: records}),
        "timeline": lambda: timeline(records, recording.events, recording.readings),
    }
    page = partial(
        Page,
        title=f"Load test: {recording.scenario.name}",
        sentences=[recording.scenario.about] if recording.scenario.about else [],
        tables=tables_of(report),
        asked=as_json(recording.scenario),
    )
    write_page(folder, pictures, page, console)


def figures_of(recording: Recording, console: Console) -> Report:
    """Sum up a run.

    Raises:
        typer.Exit: If there are no figures to give: no request was measured, or the client was late.
    """
    scenario = recording.scenario
    try:
        check_lag(recording.records, scenario.client)
        return summarize_run(recording.records, scenario.slo, as_json(scenario), recording.events, recording.readings)
    except LateClientError as error:
        fail(console, f"{error}{_saved(recording)}", 3)
    except ValueError as error:
        fail(console, f"{error}{_saved(recording)}", 1)


def _saved(recording: Recording) -> str:
    return f"\n{len(recording.records)} records are in {recording.folder}" if recording.folder else ""


class _Bar(Progress):
    """A progress bar that counts records, and tells how many failed."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(*columns, console=console)
        self._num_failed = 0
        self._bar = self.add_task("requests", total=None)

    def begin(self, num_planned: int) -> None:
        """Say how many there will be; 0 if that is not known."""
        self.update(self._bar, total=num_planned or None)

    def prepare(self, num_made: int, num_missing: int) -> None:
        """Say how many adapters were made before the run."""
        self.update(self._bar, description=f"requests (adapters made: {num_made} of {num_missing})")

    def count(self, record: RequestRecord) -> None:
        """Count a record."""
        self._num_failed += record.outcome is not Outcome.COMPLETED
        description = f"requests ({self._num_failed} failed)" if self._num_failed else "requests"
        self.update(self._bar, advance=1, description=description)
