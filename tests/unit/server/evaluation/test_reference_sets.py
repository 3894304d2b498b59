import pytest

from server.core.errors import NotFoundError
from server.core.principal import Principal, Scope, anonymous
from server.evaluation.records import hash_text
from server.evaluation.reference_sets import ReferenceSets
from tests.fixtures.outcomes import INPUT, record_of
from tests.fixtures.registry import Clock
from tests.unit.server.evaluation.conftest import OpenStore

ANYONE = anonymous()
RED = Principal("key:red", frozenset({Scope.OPERATE}), ("red-*",))
RED_TOO = Principal("key:red-2", frozenset({Scope.OPERATE}), ("red-*",))
BLUE = Principal("key:blue", frozenset({Scope.OPERATE}), ("blue-*",))
OURS = {hash_text(INPUT): ["a room for friday"]}


@pytest.fixture
def sets(open_store: OpenStore, clock: Clock) -> ReferenceSets:
    return ReferenceSets(open_store(), clock=clock)


def test_set_has_references_for_requests_of_its_inputs_only(sets: ReferenceSets) -> None:
    sets.put(ANYONE, "gold", OURS)
    ours, other = record_of(), record_of(input_sha256=hash_text("something else"))
    assert sets.matching([other, ours]) == [(ours, ("a room for friday",))]
    assert sets.matching([]) == []


def test_sets_of_one_input_are_put_together(sets: ReferenceSets) -> None:
    sets.put(ANYONE, "a", {hash_text(INPUT): ["one", "two"]})
    sets.put(ANYONE, "b", {hash_text(INPUT): ["two", "three"]})
    [(_, references)] = sets.matching([record_of()])
    assert references == ("one", "two", "three")


def test_put_replaces_the_whole_set(sets: ReferenceSets, clock: Clock) -> None:
    sets.put(ANYONE, "gold", {**OURS, hash_text("gone"): ["x"]})
    clock.now_s += 5.0
    sets.put(ANYONE, "gold", {hash_text(INPUT): ["newer"]})
    assert sets.matching([record_of(input_sha256=hash_text("gone"))]) == []
    [(_, references)] = sets.matching([record_of()])
    assert references == ("newer",)
    [found] = sets.owned(ANYONE)
    assert (found.name, found.num_references, found.updated_s) == ("gold", 1, clock.now_s)


def test_set_of_a_tenant_scores_no_others_adapters(sets: ReferenceSets) -> None:
    sets.put(RED, "gold", OURS)
    labels = ("red-a:1", "blue-a:1", "red-a:1+blue-a:1", "red-a:1+red-b:2", "base")
    records = [record_of(adapters=label) for label in labels]
    assert [record.outcome.adapters for record, _ in sets.matching(records)] == ["red-a:1", "red-a:1+red-b:2"]


def test_sets_of_two_tenants_do_not_know_each_other(sets: ReferenceSets) -> None:
    sets.put(RED, "gold", OURS)
    sets.put(BLUE, "gold", {**OURS, hash_text("another"): ["x"]})
    with pytest.raises(NotFoundError):
        sets.remove(ANYONE, "gold")
    assert [found.num_references for found in (*sets.owned(RED_TOO), *sets.owned(BLUE))] == [1, 2]
    sets.remove(RED_TOO, "gold")
    assert sets.owned(RED) == ()
    assert len(sets.owned(BLUE)) == 1
    assert sets.matching([record_of(adapters="red-a:1")]) == []
    with pytest.raises(NotFoundError):
        sets.remove(RED, "gold")
