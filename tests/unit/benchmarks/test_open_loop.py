"""The open-loop benchmark, whole, on a tiny base; and that PEFT's static server generates what PEFT does alone."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="a peer of the benchmark")

from benchmarks import models, open_loop  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.models import save_base, write_loras  # noqa: E402
from benchmarks.static_server import StaticServer  # noqa: E402
from benchmarks.trace import TraceRequest  # noqa: E402
from loadtest.records import Outcome  # noqa: E402
from tests.fixtures.t5_models import TINY  # noqa: E402


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RANDOM_SHAPES", {"flan-t5-small": TINY})


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("rate", ["auto", "8"])
def test_open_loop_on_a_tiny_base_writes_every_figure(
    rate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loop, "_MAX_RUNGS", 2)
    file = tmp_path / "open.json"
    sizes = ["--requests", "6", "--rounds", "1", "--adapters", "5", "--seconds", "0.5", "--rate", rate]

    main(["open-loop", *sizes, "--json", str(file), "--plot", str(tmp_path)])

    figures = json.loads(file.read_text())
    assert figures["saturated_ours_over_peft"] > 0
    assert figures["e2e_p99_ours_over_peft_at_same_rate"] > 0
    ours, theirs = figures["at_once"]["ours"][0], figures["at_once"]["peft_static"][0]
    assert ours["num_tokens"] == theirs["num_tokens"] > 0
    assert ours["num_failed"] == theirs["num_failed"] == 0
    assert figures["same_rate"]["ours"]["rate"] == figures["same_rate"]["peft_static"]["rate"]
    assert (tmp_path / "open-loop.png").stat().st_size > 0


def test_static_server_answers_a_batch_when_its_longest_row_ends(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", models.random_base(TINY, seed=0))
    server = StaticServer(base, write_loras(tmp_path, base, [2, 4]), "float32")
    trace = [TraceRequest(0.0, 0, (5, 6, 7), 3), TraceRequest(0.0, 1, (8, 9), 6), TraceRequest(0.0, 1, (8,), 2)]

    first, second, third = server.serve(trace, max_batch=2)

    assert [one.num_output_tokens for one in (first, second, third)] == [3, 6, 2]
    assert {one.outcome for one in (first, second, third)} == {Outcome.COMPLETED}
    assert first.ended_s == second.ended_s < third.ended_s


def test_static_server_waits_for_an_arrival_before_it_serves_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", models.random_base(TINY, seed=0))
    server = StaticServer(base, write_loras(tmp_path, base, [2]), "float32")

    early, late = server.serve([TraceRequest(0.0, 0, (5, 6), 1), TraceRequest(0.4, 0, (5, 6), 1)], max_batch=8)

    assert early.ended_s < late.ended_s
    assert late.ended_s >= 0.4
