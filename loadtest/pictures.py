"""What a run looked like: pictures by matplotlib, which is imported when one is drawn. Knows no files.

Each function returns a PNG.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from loadtest.metrics import LATENCIES
from loadtest.records import Outcome, RequestRecord, is_measured
from loadtest.report import is_bystander
from loadtest.sweep import Sweep
from loadtest.timeline import Change, Event, Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {Change.UPLOAD: "tab:blue", Change.PROMOTE: "tab:green", Change.DELETE: "tab:red"}
_SHOWN = ("ttft", "tpot", "e2e")


def latency_cdf(runs: Mapping[str, Sequence[RequestRecord]]) -> bytes:
    """Draw what share of requests had at most which latency.

    Args:
        runs: Requests of one or more runs, by title.
    """
    latencies = [latency for latency in LATENCIES if latency.tag in _SHOWN]
    drawn = [
        (latency, title, values)
        for latency in latencies
        for title, records in runs.items()
        if (values := _values(latency.values, records))
    ]

    def draw(axes: Sequence["Axes"]) -> None:
        for index, latency in enumerate(latencies):
            for kind, title, values in drawn:
                if kind is latency:
                    axes[index].step(np.sort(values), np.arange(1, len(values) + 1) / len(values), label=title)
            axes[index].set(title=latency.title, xlabel="ms", ylabel="share of requests", ylim=(0, 1.01))
            if axes[index].lines:
                axes[index].set_xlim(left=0)
                axes[index].legend()

    return png(draw, num_columns=len(latencies))


def timeline(records: Sequence[RequestRecord], events: Sequence[Event], readings: Sequence[Reading]) -> bytes:
    """Draw the run as it went: latencies, requests a second, and changes and loads of adapters."""
    changed = {event.name for event in events}

    def draw(axes: Sequence["Axes"]) -> None:
        above, below = axes
        groups = {
            "to changed adapters" if changed else "": [r for r in records if not is_bystander(r, changed)],
            "to bystanders" if changed else "completed": [r for r in records if is_bystander(r, changed)],
        }
        for label, group in groups.items():
            done = [record for record in group if record.outcome is Outcome.COMPLETED]
            if done:
                latencies_ms = [(record.ended_s - record.sent_s) * 1e3 for record in done]
                above.scatter([record.sent_s for record in done], latencies_ms, s=7, label=label, alpha=0.7)
        lost = [record.sent_s for record in records if record.outcome is not Outcome.COMPLETED]
        if lost:
            above.scatter(lost, [0.0] * len(lost), s=20, marker="x", color="tab:red", label="failed or dropped")
        above.set(ylabel="e2e, ms", ylim=(0, None))
        _mark(above, events)
        _rates(below, records)
        _loads(below, readings)
        start_s = min([record.sent_s for record in records], default=0.0)
        for each in axes:
            if start_s < 0:
                each.axvspan(start_s, 0.0, color="0.9", zorder=0, label="warm-up")
            if each.get_legend_handles_labels()[0]:
                each.legend(loc="upper right", fontsize="small")
        below.set(xlabel="seconds", ylabel="a second", ylim=(0, None))

    return png(draw, num_rows=2, width=11.0, height=3.0)


def throughput_latency(sweep: Sweep) -> bytes:
    """Draw a sweep: what was done and how long it took, by the rate that was offered."""

    def draw(axes: Sequence["Axes"]) -> None:
        rates = [point.rate for point in sweep.points]
        axes[0].plot(rates, [point.requests_per_s for point in sweep.points], "o-", label="throughput")
        axes[0].plot(rates, [point.goodput_per_s for point in sweep.points], "o-", label="goodput")
        axes[0].plot(rates, rates, ":", color="0.6", label="offered")
        axes[0].set(xlabel="offered, requests/s", ylabel="requests/s", ylim=(0, None))
        for name in ("ttft_p50", "ttft_p99", "e2e_p50", "e2e_p99"):
            known = [point for point in sweep.points if name in point.latencies_ms]
            if known:
                values = [point.latencies_ms[name] for point in known]
                axes[1].plot([point.requests_per_s for point in known], values, "o-", label=name.replace("_", " "))
        axes[1].set(xlabel="throughput, requests/s", ylabel="ms", yscale="log")
        if sweep.knee is not None:
            axes[0].axvline(sweep.knee.rate, color="tab:red", linestyle="--", label="knee")
            axes[1].axvline(sweep.knee.requests_per_s, color="tab:red", linestyle="--", label="knee")
        for each in axes:
            each.legend()

    return png(draw, num_columns=2, width=5.5)


def _values(values_of: Callable[[RequestRecord], Sequence[float]], records: Sequence[RequestRecord]) -> list[float]:
    done = (record for record in records if is_measured(record) and record.outcome is Outcome.COMPLETED)
    return [value for record in done for value in values_of(record)]


def _mark(axes: "Axes", events: Sequence[Event]) -> None:
    for change, colour in _COLOURS.items():
        times = [event.ended_s for event in events if event.change is change and not event.error_code]
        for index, time_s in enumerate(times):
            axes.axvline(time_s, color=colour, alpha=0.5, linewidth=0.8, label=change.value if index == 0 else None)


def _rates(axes: "Axes", records: Sequence[RequestRecord]) -> None:
    if not records:
        return
    start, end = min(record.sent_s for record in records), max(record.ended_s for record in records)
    edges = np.arange(np.floor(start), np.ceil(end) + 1.0)
    if len(edges) < 2:
        return
    sent, _ = np.histogram([record.sent_s for record in records], edges)
    done = [record.ended_s for record in records if record.outcome is Outcome.COMPLETED]
    axes.stairs(sent, edges, label="requests sent", color="0.6")
    axes.stairs(np.histogram(done, edges)[0], edges, label="requests completed", color="tab:blue")


def _loads(axes: "Axes", readings: Sequence[Reading]) -> None:
    if len(readings) < 2:
        return
    times = [reading.at_s for reading in readings]
    loads = np.diff([reading.num_loads for reading in readings])
    if not loads.any():
        return
    axes.stairs(loads / np.diff(times), times, label="adapter loads", color="tab:orange")
    for time_s, count in zip(times[1:], loads, strict=True):
        if count:
            axes.axvline(time_s, color="tab:orange", alpha=0.25, linewidth=0.8)


def png(
    draw: Callable[[Sequence["Axes"]], None],
    *,
    num_columns: int = 1,
    num_rows: int = 1,
    width: float = 4.0,
    height: float = 4.0,
) -> bytes:
    """Return a PNG of what ``draw`` draws, on as many axes as asked for, each ``width`` by ``height`` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: a figure of its own that no display and no other thread knows.
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False, sharex=num_rows > 1).flat)
    draw(axes)
    for each in axes:
        each.grid(visible=True, alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    buffer = BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
