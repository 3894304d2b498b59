"""Hours of load in seconds: what is left of goodput beyond capacity, and of a light tenant beside a flood."""

import numpy as np
import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")

from tests.fixtures.simulated_steps import MINI_ON_TWO_CORES, Asked, SimulatedSteps, poisson  # noqa: E402

CAPACITY = 40.0
"""Answers a second of the simulated engine, all seats taken."""

BOUND_S = 2 * 32 / CAPACITY


def goodput(monkeypatch: pytest.MonkeyPatch, load: float) -> float:
    engine = SimulatedSteps(monkeypatch, MINI_ON_TWO_CORES)
    asked = poisson(load * CAPACITY, 20, "b", seed=1, time_left_s=BOUND_S)
    return sum(took_s <= BOUND_S and each.at_s > 5 for each, took_s in engine.serve(asked).items()) / 15


def test_goodput_at_three_times_the_capacity_is_what_it_was_at_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = goodput(monkeypatch, 1.0)
    assert peak > 0.9 * CAPACITY
    assert goodput(monkeypatch, 3.0) >= 0.9 * peak


def latencies_s(monkeypatch: pytest.MonkeyPatch, *others: Asked) -> list[float]:
    engine = SimulatedSteps(monkeypatch, MINI_ON_TWO_CORES, max_flood_rows=2)
    light = poisson(0.1 * CAPACITY, 40, "light", seed=2)
    served = engine.serve([*light, *others])
    took_s = [took for each, took in served.items() if each.tenant == "light" and each.at_s > 5]
    assert len(took_s) == sum(each.at_s > 5 for each in light)
    return took_s


@pytest.mark.parametrize("time_left_s", [BOUND_S, None])
def test_flood_leaves_a_light_tenant_within_half_more_of_what_it_had_alone(
    monkeypatch: pytest.MonkeyPatch, time_left_s: float | None
) -> None:
    alone = latencies_s(monkeypatch)
    beside = latencies_s(monkeypatch, *poisson(2 * CAPACITY, 40, "flood", seed=3, time_left_s=time_left_s))
    for percent in (50, 99):
        assert np.percentile(beside, percent) <= 1.5 * np.percentile(alone, percent)


def test_two_floods_share_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimulatedSteps(monkeypatch, MINI_ON_TWO_CORES, max_flood_rows=2)
    floods = [*poisson(CAPACITY, 20, "a", seed=4), *poisson(CAPACITY, 20, "b", seed=5)]
    served = [each.tenant for each, took_s in engine.serve(floods).items() if 5 < each.at_s + took_s <= 20]
    assert len(served) >= 0.9 * CAPACITY * 15
    assert served.count("a") == pytest.approx(served.count("b"), rel=0.1)
