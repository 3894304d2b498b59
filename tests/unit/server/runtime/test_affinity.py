"""Adapters keep their replica, and a hot one spills over in order."""

import random
from collections import Counter

import pytest

from server.core.errors import InvalidArgumentError
from server.runtime.affinity import Spill, adapter_key, choose, ranked

REPLICAS = [f"replica-{number}" for number in range(8)]
ADAPTERS = [f"adapter-{number}" for number in range(4000)]
IDLE = dict.fromkeys(REPLICAS, 0)
SPILL = Spill(least=4, factor=1.25)


def _first(key: str, loads: dict[str, int]) -> str:
    return choose(key, loads, SPILL, random.Random(1))[0]


@pytest.mark.parametrize(
    ("references", "key"),
    [((), ""), (("a",), "a"), (("a:3",), "a"), (("a@canary",), "a"), (("a", "b"), "a"), (("b@stable", "a"), "b")],
)
def test_key_is_the_name_of_the_first_adapter(references: tuple[str, ...], key: str) -> None:
    assert adapter_key(references) == key


def test_key_that_is_no_text_is_ranked_too() -> None:
    assert sorted(ranked("\ud800", REPLICAS)) == REPLICAS


def test_adapters_spread_evenly() -> None:
    shares = Counter(_first(adapter, IDLE) for adapter in ADAPTERS)
    assert set(shares) == set(REPLICAS)
    assert max(shares.values()) < 1.3 * len(ADAPTERS) / len(REPLICAS)


def test_replica_that_leaves_moves_only_its_own_adapters() -> None:
    left = dict.fromkeys(REPLICAS[1:], 0)
    for adapter in ADAPTERS:
        before, after = _first(adapter, IDLE), _first(adapter, left)
        assert after == (before if before != REPLICAS[0] else ranked(adapter, REPLICAS)[1])


def test_loaded_replica_is_passed_over_for_the_adapters_second() -> None:
    order = ranked("hot", REPLICAS)
    assert _first("hot", IDLE | {order[0]: SPILL.least - 1}) == order[0]
    assert choose("hot", IDLE | {order[0]: SPILL.least}, SPILL, random.Random(1)) == [*order[1:], order[0]]


def test_no_request_waits_while_a_replica_has_a_row_to_spare() -> None:
    busy = dict.fromkeys(REPLICAS, 100)
    spare = ranked("cold", REPLICAS)[-1]
    assert _first("cold", busy | {spare: SPILL.least - 1}) == spare


def test_even_load_beyond_the_least_moves_nothing() -> None:
    busy = dict.fromkeys(REPLICAS, 100)
    assert all(_first(adapter, busy) == ranked(adapter, REPLICAS)[0] for adapter in ADAPTERS[:100])


def test_one_hot_adapter_alone_loads_replicas_evenly_within_the_bound() -> None:
    loads = dict(IDLE)
    for _ in range(800):
        loads[_first("hot", loads)] += 1
    assert max(loads.values()) <= 1.25 * 801 / len(REPLICAS) + 1


def test_request_for_the_base_takes_the_less_loaded_of_two() -> None:
    loads = {"busy": 9, "free": 0}
    assert {choose("", loads, SPILL, random.Random(seed))[0] for seed in range(20)} == {"free"}
    drawn = Counter(choose("", IDLE, SPILL, random.Random(seed))[0] for seed in range(400))
    assert set(drawn) == set(REPLICAS)


def test_no_replicas_give_no_choice() -> None:
    assert choose("a", {}, SPILL, random.Random(1)) == []


@pytest.mark.parametrize(("least", "factor"), [(0, 1.25), (8, 1.0)])
def test_spill_that_would_leave_no_replica_is_refused(least: int, factor: float) -> None:
    with pytest.raises(InvalidArgumentError):
        Spill(least, factor)
