"""The simulated replicas hit as often as arithmetic says, and requests by their adapter more often than by chance."""

from dataclasses import replace

import pytest

from benchmarks.replica_simulation import Fleet, simulate

IDLE = Fleet(num_replicas=2, num_adapters=64, load=0.05, num_requests=6000)


@pytest.mark.parametrize(("is_affine", "resident"), [(True, 16), (False, 8)])
def test_idle_fleet_hits_as_often_as_adapters_are_resident(is_affine: bool, resident: int) -> None:
    outcome = simulate(replace(IDLE, is_affine=is_affine))
    assert outcome.hit_rate == pytest.approx(resident / 64, abs=0.02)


def test_adapters_that_all_fit_are_all_hits() -> None:
    outcome = simulate(replace(IDLE, num_adapters=8))
    assert outcome.hit_rate == 1.0
    assert (outcome.ttft_p50_ms, outcome.ttft_p99_ms) == pytest.approx((30.0, 30.0))


def test_miss_waits_for_its_adapter() -> None:
    outcome = simulate(replace(IDLE, num_adapters=6000))
    assert outcome.hit_rate < 0.01
    assert outcome.ttft_p50_ms == pytest.approx(60.0)


def test_gain_grows_with_replicas() -> None:
    gains = []
    for num_replicas in (2, 8):
        fleet = Fleet(num_replicas=num_replicas, num_adapters=16 * num_replicas, zipf=1.0, num_requests=6000)
        gains.append(simulate(fleet).hit_rate / simulate(replace(fleet, is_affine=False)).hit_rate)
    assert gains[1] > gains[0] > 1.1


def test_full_fleet_makes_requests_wait_and_spreads_one_hot_adapter() -> None:
    outcome = simulate(Fleet(num_replicas=4, num_adapters=1, load=0.95, num_requests=6000))
    assert outcome.peak_over_mean < 1.5
    assert outcome.ttft_p99_ms > 30.0


def test_same_fleet_gives_the_same_outcome() -> None:
    fleet = replace(IDLE, num_requests=500)
    assert simulate(fleet) == simulate(fleet)
    assert simulate(replace(fleet, seed=2)) != simulate(fleet)
