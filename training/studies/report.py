"""The form of every report: Markdown with tables, the figures as JSON, and plots. It computes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Series:
    """One line of a plot: points, and the half-widths of their intervals below and above where they have any."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] = ()
    above: Sequence[float] = ()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped.

    Raises:
        Nothing.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_report(folder: Path, title: str, sections: Mapping[str, str], figures: object) -> Path:
    """Write `report.md` and `figures.json` to `folder`, and return the report's path.

    Args:
        folder: made where it is missing.
        title: of the page.
        sections: headings and Markdown, in order; an empty text leaves its heading out.
        figures: plain JSON values.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", *(f"## {heading}\n\n{text.strip()}" for heading, text in sections.items() if text.strip())]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return report


def plot(
    picture: Path, series: Sequence[Series], *, title: str, x: str, y: str, log_x: bool = False, join: bool = True
) -> None:
    """Write a PNG with one line a series, and bars where points have intervals.

    Args:
        picture: the file.
        series: what to draw.
        title: above the plot.
        x: name and unit of the horizontal axis.
        y: name and unit of the vertical axis.
        log_x: powers of two, and 0 as a place of its own.
        join: whether a series' points belong on one line.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for one in series:
        bars = (list(one.below), list(one.above)) if one.below else None
        axes.errorbar(
            list(one.x), list(one.y), yerr=bars, marker="o", capsize=3, linestyle="-" if join else "", label=one.label
        )
    if log_x:
        lowest = min((value for one in series for value in one.x if value > 0), default=1.0)
        axes.set_xscale("symlog", base=2, linthresh=lowest)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def megabytes(num_bytes: float) -> str:
    """Return a size in MB of a million bytes.

    Raises:
        Nothing.
    """
    return f"{num_bytes / 1e6:,.1f}"
