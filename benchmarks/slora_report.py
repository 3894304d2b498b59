"""What the benchmark of S-LoRA's workload shows: a table, a picture, a page and its figures. Knows no servers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from loadtest.cli.showing import write_page
from loadtest.page import Page
from loadtest.pictures import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


OPEN, SATURATED = "open loop", "saturated"


@dataclass(frozen=True, slots=True)
class SLoraPoint:
    """One load on one server.

    Attributes:
        num_adapters: Adapters registered there.
        protocol: ``http`` or ``grpc``.
        load: ``open loop`` or ``saturated``.
        num_requests: Requests sent.
        num_completed: Requests answered.
        num_asked: Adapters that were asked for at all.
        requests_per_s: Answers a second.
        tokens_per_s: Their tokens a second.
        ttft_p50_ms: Median TTFT; None if none could be measured.
        ttft_p99_ms: Its 99th percentile, likewise.
        e2e_p50_ms: Median e2e latency, likewise.
        slo_attainment: Share of requests that kept every objective of the scenario.
        num_loads: Adapters brought to the device; None if the server did not tell.
        client_was_late: Whether the client sent too late for its figures to be the server's.
    """

    num_adapters: int
    protocol: str
    load: str
    num_requests: int
    num_completed: int
    num_asked: int
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    e2e_p50_ms: float | None
    slo_attainment: float
    num_loads: int | None
    client_was_late: bool

    def line(self) -> str:
        """Return the point in words."""
        late = "; the client was late: no figures" if self.client_was_late else ""
        return (
            f"{self.num_adapters} adapters, {self.protocol}, {self.load}: {self.num_completed} of {self.num_requests} "
            f"answered, {self.requests_per_s:.1f} requests/s, TTFT p50 {_shown(self.ttft_p50_ms)} ms, "
            f"{self.slo_attainment:.1%} within the objectives{late}"
        )


def points_table(points: Sequence[SLoraPoint]) -> Table:
    """Return all points as a table."""
    heads = ("requests/s", "tokens/s", "TTFT p50, ms", "TTFT p99, ms", "e2e p50, ms", "SLO kept", "asked", "loads")
    table = Table("adapters", "protocol", "load", *heads, "", title="S-LoRA's workload")
    for column in (table.columns[0], *table.columns[3:-1]):
        column.justify = "right"
    for point in points:
        latencies = map(_shown, (point.ttft_p50_ms, point.ttft_p99_ms, point.e2e_p50_ms))
        table.add_row(
            *(str(point.num_adapters), point.protocol, point.load),
            *(f"{point.requests_per_s:.1f}", f"{point.tokens_per_s:.0f}", *latencies, f"{point.slo_attainment:.1%}"),
            *(str(point.num_asked), "-" if point.num_loads is None else str(point.num_loads)),
            "client late" if point.client_was_late else "",
        )
    return table


def write_report(points: Sequence[SLoraPoint], asked: Mapping[str, object], folder: Path, console: Console) -> None:
    """Write ``slora.json``, ``slora.png`` and ``report.html`` into a folder.

    Args:
        points: What was measured.
        asked: What was asked for, and where.
        folder: Made if need be.
        console: Told if there can be no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {**asked, "points": [asdict(point) for point in points]}
    (folder / "slora.json").write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    page = partial(Page, title="S-LoRA's workload", sentences=[], tables=[points_table(points)], asked=_plain(asked))
    write_page(folder, {"slora": lambda: picture(points)}, page, console)


def picture(points: Sequence[SLoraPoint]) -> bytes:
    """Draw by number of adapters, a line for each protocol: throughput when saturated, TTFT and objectives when not."""

    def draw(axes: Sequence["Axes"]) -> None:
        throughput, ttft, kept = axes
        for protocol in dict.fromkeys(point.protocol for point in points):
            ours = [point for point in points if point.protocol == protocol]
            full = [point for point in ours if point.load == SATURATED]
            throughput.plot(
                [each.num_adapters for each in full], [each.requests_per_s for each in full], "o-", label=protocol
            )
            as_it_comes = [point for point in ours if point.load == OPEN]
            counts = [point.num_adapters for point in as_it_comes]
            ttft.plot(counts, [_or_nan(point.ttft_p50_ms) for point in as_it_comes], "o-", label=f"{protocol}, p50")
            ttft.plot(counts, [_or_nan(point.ttft_p99_ms) for point in as_it_comes], "o:", label=f"{protocol}, p99")
            kept.plot(counts, [point.slo_attainment for point in as_it_comes], "o-", label=protocol)
        throughput.set(title="saturated", ylabel="requests/s", ylim=(0, None))
        ttft.set(title="open loop", ylabel="TTFT, ms", yscale="log")
        kept.set(title="open loop", ylabel="share within the objectives", ylim=(0, 1.02))
        for each in axes:
            each.set(xlabel="registered adapters", xscale="log")
            each.legend()

    return png(draw, num_columns=3, width=4.5)


def _or_nan(figure: float | None) -> float:
    return math.nan if figure is None else figure


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.0f}"


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """Return values as a page can show them."""
    return dict(json.loads(json.dumps(values)))
