"""Replays and reports as PNG pictures. Needs matplotlib, which serving does not. Knows no server and no options."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from server.cli.evaluation.report import EvaluationReport
from server.cli.evaluation.summary import ReplaySummary


def plot_replay(summary: ReplaySummary, picture: Path) -> None:
    """Write each system's figures side by side, with their intervals.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for system in summary.systems for name in system.figures))
    width = 0.8 / max(len(summary.systems), 1)
    for rank, system in enumerate(summary.systems):
        places = [names.index(name) + (rank + 0.5) * width - 0.4 for name in system.figures]
        found = list(system.figures.values())
        spans = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
        values = [each.value for each in found]
        label = f"{system.system} ({system.num_answered} cases)"
        axes.bar(places, values, width * 0.9, yerr=spans, capsize=3, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"mean, with its {summary.level:.0%} interval")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


def plot_reports(reports: Sequence[EvaluationReport], metric: str, picture: Path) -> None:
    """Write a metric over time, one line an adapter combination, with a band for its interval.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the picture cannot be written.
        ValueError: If no window has the metric.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    drawn = [(report.adapters, report.windows[metric]) for report in reports if metric in report.windows]
    if not drawn:
        raise ValueError(f"the server tells of no {metric} over time")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for adapters, windows in drawn:
        times = [datetime.fromtimestamp(window.end_s, UTC) for window in windows]
        [line] = axes.plot(times, [window.mean for window in windows], "o-", label=adapters)  # type: ignore[arg-type]
        lows = [window.mean if window.low is None else window.low for window in windows]
        highs = [window.mean if window.high is None else window.high for window in windows]
        axes.fill_between(times, lows, highs, color=line.get_color(), alpha=0.2)  # type: ignore[arg-type]
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    axes.set(xlabel="end of the window (UTC)", ylabel=metric)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
