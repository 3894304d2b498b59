"""The benchmark of traces: its medians, and one short run of it on real servers."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import tracing


def test_sides_are_held_against_the_first_round_by_round() -> None:
    off = [tracing._Round(100.0, 10.0, 1.0), tracing._Round(200.0, 20.0, 2.0), tracing._Round(300.0, 30.0, 3.0)]
    on = [tracing._Round(110.0, 9.0, 1.0), tracing._Round(240.0, 18.0, 2.5), tracing._Round(360.0, 27.0, 9.0)]
    first, second = tracing.summarize({"off": off, "on": on})
    assert (first.side, first.cpu_over_off, first.cpu_us) == ("off", 1.0, 200.0)
    assert (second.cpu_over_off, second.requests_per_s, second.p50_ms) == (1.2, 18.0, 2.5)


@pytest.mark.slow
def test_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    tracing.add_command(commands)
    parser = commands.choices["tracing"]
    arguments = [
        "--sides",
        "off",
        "traces",
        "--rounds",
        "1",
        "--num-requests",
        "16",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    parser.parse_args(arguments).run(parser.parse_args(arguments))
    figures = json.loads((tmp_path / "figures.json").read_text())["tracing"]
    assert [figure["side"] for figure in figures] == ["off", "traces"]
    assert all(figure["requests_per_s"] > 0 for figure in figures)
