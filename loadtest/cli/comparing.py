"""``medley loadtest compare`` and ``report``: what can be done with runs that are over."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.cli.options import OutOption, fail
from loadtest.cli.running import figures_of, report_on
from loadtest.cli.showing import write_page
from loadtest.comparison import Side
from loadtest.comparison import compare as compare_sides
from loadtest.page import Page
from loadtest.pictures import latency_cdf
from loadtest.recording import Recording, RecordingError, load_recording
from loadtest.tables import comparison_tables, runs_table

RunArgument = Annotated[Path, typer.Argument(help="A run's folder, or its report.json.")]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs, or their report.json.")],
    *,
    out: OutOption = None,
    titles: Annotated[str, typer.Option(help="How to call them: before,after.")] = "",
) -> None:
    """Put runs side by side: every figure, those of the others over the first's, and how sure that is.

    Exit status: 0, or 2 if one of them is no run.
    """
    if len(runs) < 2:
        raise typer.BadParameter("give two runs or more")
    console = Console()
    recordings = [_load(path, console) for path in runs]
    named = titles.split(",") if titles else _titles(recordings)
    if len({*named, ""}) != len(runs) + 1 or len(named) != len(runs):
        raise typer.BadParameter(f"give {len(runs)} different titles, as in --titles before,after")
    first, *others = (
        Side(title, figures_of(recording, console), recording.records, recording.scenario.slo)
        for title, recording in zip(named, recordings, strict=True)
    )
    compared = [compare_sides(first, other) for other in others]
    tables = [runs_table([first, *others]), *(table for one in compared for table in comparison_tables(one))]
    console.print(*tables)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    shown = {"comparisons": [one.as_json() for one in compared]}
    (out / "comparison.json").write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    page = partial(
        Page,
        title=f"{' and '.join(named[1:])} against {named[0]}",
        sentences=[],
        tables=tables,
        asked={side.title: dict(side.report.config) for side in (first, *others)},
    )
    drawn = {side.title: side.measured for side in (first, *others)}
    write_page(out, {"latency": lambda: latency_cdf(drawn)}, page, console)
    console.print(f"Kept in {out}", markup=False, highlight=False, soft_wrap=True)


def report(run: RunArgument) -> None:
    """Make the report of a run's records again, of one that was broken off, too.

    Exit status: 0, 1 if no request was measured, 2 if it is no run, 3 if the client was too late to give figures.
    """
    console = Console()
    report_on(_load(run, console), console)


def _load(path: Path, console: Console) -> Recording:
    try:
        return load_recording(path if path.is_dir() else path.parent)
    except RecordingError as error:
        fail(console, str(error), 2)


def _titles(recordings: list[Recording]) -> list[str]:
    """Return the runs' names, or where they are the same, their folders' or their servers'."""
    ways = (
        [recording.scenario.name for recording in recordings],
        [recording.folder.resolve().name if recording.folder else "" for recording in recordings],
        [recording.scenario.target.full_address for recording in recordings],
        [f"run {number}" for number in range(1, len(recordings) + 1)],
    )
    return next(names for names in ways if len(set(names)) == len(recordings))
