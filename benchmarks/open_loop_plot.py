"""The open loop's picture: what each side served at each offered rate, and how long its requests took."""

import statistics
from pathlib import Path

import numpy as np

from benchmarks.open_loop_results import Results, sustained

_COLOURS = ("tab:blue", "tab:orange")


def plot(results: Results, picture: Path) -> None:
    """Write a PNG of throughput over offered rate, and of latencies at one rate and at the rates each sustained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speeds, latencies) = pyplot.subplots(1, 2, figsize=(11, 4))
    for colour, (side, same) in zip(_COLOURS, results.same_rate.items(), strict=True):
        ladder = results.ladder.get(side, [])
        runs = sorted([*ladder, same], key=lambda run: run.rate)
        speeds.plot(
            [run.rate for run in runs], [run.summary.tokens_per_s for run in runs], "o-", color=colour, label=side
        )
        at_once = statistics.median(summary.tokens_per_s for summary in results.at_once[side])
        speeds.axhline(at_once, color=colour, linestyle=":", label=f"{side}, all at once")
        best = sustained(ladder)
        for run, style in [(same, "-"), *([(best, "--")] if best and best.rate != same.rate else [])]:
            share = np.arange(1, len(run.e2e_ms) + 1) / len(run.e2e_ms)
            label = f"{side}, {run.rate:.2f} requests/s"
            latencies.plot(np.sort(run.e2e_ms) / 1e3, share, style, color=colour, label=label)
    speeds.set(xlabel="offered, requests/s", ylabel="served, requested tokens/s", ylim=(0, None))
    latencies.set(xlabel="e2e latency, s", ylabel="share of requests", xlim=(0, None))
    for axes in (speeds, latencies):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
