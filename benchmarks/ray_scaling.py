"""``python -m benchmarks ray-scaling``: 1 to 64 replicas by simulation, requests by their adapter against by chance."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.replica_simulation import Fleet, Outcome, simulate

_NUM_REPLICAS = (1, 2, 4, 8, 16, 32, 64)
_ADAPTERS_EACH = 32
_REQUESTS_EACH = 1500
_LEAST_REQUESTS = 12_000
_ZIPFS = (0.0, 1.0)
_ASKED = Fleet(num_replicas=2, num_adapters=64, load=0.2, num_requests=40_000)
_POLICIES = {True: "by adapter", False: "by chance"}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser("ray-scaling", help="replicas on Ray Serve, simulated")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--plot", type=Path, help="write the picture to a folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests: shows that it runs")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    scale = 0.1 if arguments.quick else 1.0
    cells = [cell for zipf in _ZIPFS for cell in _sweep(zipf, scale)]
    asked = [_cell(replace(_ASKED, is_affine=is_affine, load=load)) for load in (0.2, 0.6) for is_affine in _POLICIES]
    Console(width=120).print(_table("64 adapters, 2 replicas of 8 slots, all alike", asked))
    for zipf in _ZIPFS:
        title = f"{_ADAPTERS_EACH} adapters a replica, popularity 1/n^{zipf:g}"
        Console(width=120).print(_table(title, [cell for cell in cells if cell["fleet"]["zipf"] == zipf]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"asked": asked, "sweep": cells}, indent=1))
    if arguments.plot:
        _plot(cells, arguments.plot / "ray-scaling.png")


def _sweep(zipf: float, scale: float) -> list[dict[str, Any]]:
    fleets = [
        Fleet(
            num_replicas=number,
            num_adapters=_ADAPTERS_EACH * number,
            zipf=zipf,
            num_requests=int(scale * max(_LEAST_REQUESTS, _REQUESTS_EACH * number)),
            is_affine=is_affine,
        )
        for number in _NUM_REPLICAS
        for is_affine in _POLICIES
    ]
    return [_cell(fleet) for fleet in fleets]


def _cell(fleet: Fleet) -> dict[str, Any]:
    outcome: Outcome = simulate(fleet)
    return {"fleet": asdict(fleet), "outcome": asdict(outcome)}


def _table(title: str, cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in ("replicas", "load", "requests go", "hit rate", "TTFT p50 ms", "TTFT p99 ms", "busiest over mean"):
        table.add_column(column, justify="right")
    for cell in cells:
        fleet, outcome = cell["fleet"], cell["outcome"]
        table.add_row(
            str(fleet["num_replicas"]),
            f"{fleet['load']:.2f}",
            _POLICIES[fleet["is_affine"]],
            f"{outcome['hit_rate']:.3f}",
            f"{outcome['ttft_p50_ms']:.0f}",
            f"{outcome['ttft_p99_ms']:.0f}",
            f"{outcome['peak_over_mean']:.2f}",
        )
    return table


def _plot(cells: Sequence[dict[str, Any]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for zipf, style in zip(_ZIPFS, ("-", "--"), strict=True):
        for is_affine, colour in zip(_POLICIES, ("tab:blue", "tab:orange"), strict=True):
            chosen = [
                cell for cell in cells if cell["fleet"]["zipf"] == zipf and cell["fleet"]["is_affine"] == is_affine
            ]
            replicas = [cell["fleet"]["num_replicas"] for cell in chosen]
            for axis, figure_name in zip(axes, ("hit_rate", "ttft_p99_ms"), strict=True):
                values = [cell["outcome"][figure_name] for cell in chosen]
                label = f"{_POLICIES[is_affine]}, 1/n^{zipf:g}"
                axis.plot(replicas, values, style, color=colour, marker="o", label=label)
    for axis, words in zip(axes, ("adapter hit rate", "TTFT p99, ms"), strict=True):
        axis.set(xscale="log", xticks=_NUM_REPLICAS, xticklabels=_NUM_REPLICAS, xlabel="replicas", ylabel=words)
        axis.set_ylim(0, None)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
