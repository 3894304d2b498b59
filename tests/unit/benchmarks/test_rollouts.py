"""The simulation of rollouts, small and with a fixed seed: wrong decisions are few, and effects are found."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="the benchmarks' command line needs it")

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.rollouts import measure_effect, measure_null, wrong_decisions  # noqa: E402


@pytest.mark.parametrize("percent", [50, 10])
def test_equal_versions_are_decided_wrongly_in_at_most_one_rollout_of_twenty(percent: int) -> None:
    null = measure_null(percent, 200, 600, 30, seed=1)
    assert sum(null.verdicts.values()) == 200
    assert wrong_decisions(null) <= 10
    assert null.verdicts.get("GUARD_RAIL", 0) <= 4


def test_greater_effects_take_fewer_requests_and_are_found_the_right_way_round() -> None:
    found = [measure_effect(50, effect, 20, seed=2) for effect in (5.0, 8.0)]
    assert [figures.num_wrong for figures in found] == [0, 0]
    needed = [figures.num_requests["80%"] for figures in found]
    assert needed[0] is not None
    assert needed[1] is not None
    assert 100 < needed[1] < needed[0] < 1000


def test_benchmark_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.json"
    arguments = "rollouts --num-rollouts 4 --num-requests 60 --percent 50 --effects 12 --json"
    main([*arguments.split(), str(file)])
    figures = json.loads(file.read_text())
    assert figures["no_difference"][0]["num_rollouts"] == 4
    assert figures["effects"][0]["effect"] == 12
