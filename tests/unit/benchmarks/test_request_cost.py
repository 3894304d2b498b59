"""What the benchmark of a request's cost makes of its rounds; and one short run of it on a real server."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.request_cost import Turn, medians


def test_medians_are_of_each_way() -> None:
    turns = [Turn("http", 3.0, 9.0, 32.0), Turn("grpc", 10.0, 1.0, 32.0), Turn("http", 1.0, 8.0, 32.0)]
    turns.append(Turn("http", 2.0, 1.0, 30.0))
    assert medians(turns) == [Turn("http", 2.0, 8.0, 32.0), Turn("grpc", 10.0, 1.0, 32.0)]


@pytest.mark.slow
def test_ways_that_are_named_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "cost.json"
    ways = ["--ways", "references", "grpc-stream", "http", "--step-time-s", "0.001"]
    main(["request-cost", "--rounds", "1", "--requests", "20", *ways, "--json", str(figures)])
    turns = json.loads(figures.read_text())["turns"]
    assert [(turn["way"], turn["tokens"]) for turn in turns] == [("http", 32), ("grpc-stream", 32), ("references", 0)]
