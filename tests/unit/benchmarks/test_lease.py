"""The lease benchmark, whole, on few adapters."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")

from benchmarks.__main__ import main  # noqa: E402


def test_lease_benchmark_writes_its_figures_for_every_size(tmp_path: Path) -> None:
    file = tmp_path / "lease.json"

    main(["lease", "--num-adapters", "2", "12", "--num-requests", "200", "--json", str(file)])

    figures = json.loads(file.read_text())["lease"]
    assert [(figure["database"], figure["num_adapters"]) for figure in figures] == [("sqlite", 2), ("sqlite", 12)]
    for figure in figures:
        assert figure["num_requests"] == 200
        assert 0 < figure["median_us"] <= figure["p99_us"]
