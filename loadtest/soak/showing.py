"""A soak shown: tables for the terminal, a picture, and the page. Knows no servers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from loadtest.cli.showing import write_page
from loadtest.page import Page
from loadtest.pictures import png
from loadtest.scenario import Scenario
from loadtest.scenario_file import as_json
from loadtest.soak.run import Soak
from loadtest.soak.verdict import MIB, RULE, Verdict, windows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show(soak: Soak, verdict: Verdict, scenario: Scenario, folder: Path, console: Console) -> None:
    """Show a soak and write ``soak.json``, ``soak.png`` and ``report.html`` into its folder."""
    tables = [trend_table(verdict), count_table(verdict)]
    console.print(*tables)
    console.print(verdict.sentence(), style="bold", markup=False, highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    shown = {
        "config": as_json(scenario),
        **verdict.as_json(),
        "windows": [asdict(one) for one in windows_of(soak.ended)],
    }
    (folder / "soak.json").write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    page = partial(
        Page,
        title=f"Soak: {scenario.name}",
        sentences=[verdict.sentence(), RULE],
        tables=tables,
        asked=as_json(scenario),
    )
    write_page(folder, {"soak": lambda: picture(soak)}, page, console)
    console.print(f"Kept in {folder}", markup=False, highlight=False, soft_wrap=True)


def trend_table(verdict: Verdict) -> Table:
    """Return what became of each figure."""
    table = Table("figure", "unit", "samples", "median", "growth", "at most", "", title="Over the last two thirds")
    for column in table.columns[2:6]:
        column.justify = "right"
    for each in verdict.trends:
        figures = (f"{each.median:.1f}", f"{each.growth:+.2f}", f"{each.most_growth:.1f}")
        table.add_row(each.title, each.unit, str(each.num_samples), *figures, "flat" if each.is_flat else "not flat")
    return table


def count_table(verdict: Verdict) -> Table:
    """Return what was done meanwhile."""
    table = Table("what", "number", title=f"In {verdict.duration_s:.0f} s")
    table.columns[1].justify = "right"
    rows = {
        "requests": verdict.num_requests,
        "requests failed": verdict.num_failed,
        **{f"  {code}": count for code, count in verdict.errors.items()},
        **{f"adapters: {change}": count for change, count in verdict.changes.items()},
        "changes failed": verdict.num_changes_failed,
        "adapter loads": verdict.num_loads,
        "adapter evictions": verdict.num_evictions,
    }
    for what, number in rows.items():
        table.add_row(what, "-" if number is None else str(number))
    return table


def picture(soak: Soak) -> bytes:
    """Draw memory, file handles, threads and latency as they went."""
    samples, windows = soak.samples, windows_of(soak.ended)

    def draw(axes: Sequence["Axes"]) -> None:
        memory, handles, threads, latency = axes
        times = [sample.at_s for sample in samples]
        memory.plot(times, [sample.rss_bytes / MIB for sample in samples])
        memory.set(ylabel="RSS, MiB")
        handles.plot(times, [sample.num_fds for sample in samples])
        handles.set(ylabel="file handles")
        threads.plot(times, [sample.num_threads for sample in samples])
        threads.set(ylabel="threads")
        latency.plot([one.at_s for one in windows], [one.p50_ms for one in windows], label="p50")
        latency.plot([one.at_s for one in windows], [one.p90_ms for one in windows], label="p90")
        latency.set(ylabel="e2e, ms", xlabel="seconds")
        for each in axes:
            # From 0, so that what looks level is.
            each.set_ylim(0, 1.1 * max(each.get_ylim()[1], 1e-9))
        latency.legend(loc="upper right", fontsize="small")

    return png(draw, num_rows=4, width=11.0, height=2.2)
