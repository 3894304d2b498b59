"""Rollouts in a database: begun once, decided once, seen by others, on SQLite and on PostgreSQL."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapters.database import open_database
from adapters.errors import IdempotencyConflictError
from adapters.registry import Change
from server.core.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from server.evaluation.rollouts import schema
from server.evaluation.rollouts.records import (
    Action,
    ArmFigures,
    Arms,
    Decision,
    Mode,
    Plan,
    Rollout,
    State,
    Terms,
    Verdict,
)
from server.evaluation.rollouts.store import RolloutStore
from tests.fixtures.registry import ANNA, Clock
from tests.unit.server.evaluation.rollouts.conftest import OpenStore

PLAN = Plan("tweets", "stable", 1, 3, Terms(Mode.SHADOW, 20, "bleu", automatic=False, min_effect=0.5))
ARMS = Arms(ArmFigures(60, 30, 25.0, 0.0, 210.0), ArmFigures(58, 0))


def decided(action: Action, reason: str = "") -> Decision:
    return Decision(5.0, "server", action, reason, {"arms": {"stable": {"mean": 25.0}}})


PROMOTE = decided(Action.PROMOTE)


def roll_back(store: RolloutStore, rollout: Rollout) -> bool:
    return store.finish(rollout, State.ROLLED_BACK, Verdict.WORSE, ARMS, decided(Action.ROLL_BACK))


def at_once(works: Sequence[Callable[[], bool]]) -> int:
    """Do all in threads that begin together; return how many said yes."""
    start = threading.Barrier(len(works))

    def work(one: Callable[[], bool]) -> bool:
        start.wait()
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return sum(pool.map(work, works))


def test_rollout_is_read_as_it_was_begun_by_every_server(
    store: RolloutStore, open_store: OpenStore, clock: Clock
) -> None:
    begun = store.create(PLAN, ANNA)
    assert (begun.plan, begun.state, begun.verdict) == (PLAN, State.RUNNING, Verdict.NO_DATA)
    assert (begun.created_s, begun.ended_s, begun.arms) == (clock.now_s, None, Arms())
    (start,) = begun.decisions
    assert (start.by, start.action) == (ANNA.who, Action.START)
    for other in (store, open_store()):
        assert other.running == (begun,)
        assert other.get("tweets", begun.rollout_id) == begun
        assert other.list("tweets") == (begun,)
        assert other.routes


def test_second_rollout_of_an_alias_is_refused_while_one_runs(store: RolloutStore) -> None:
    first = store.create(PLAN, ANNA)
    with pytest.raises(FailedPreconditionError, match=first.rollout_id):
        store.create(PLAN, ANNA)
    store.create(replace(PLAN, alias="canary"), ANNA)
    assert roll_back(store, first)
    assert store.create(PLAN, ANNA).rollout_id != first.rollout_id


def test_same_key_begins_one_rollout_and_another_plan_under_it_is_refused(store: RolloutStore, clock: Clock) -> None:
    keyed = Change("key:anna", "", "build-42")
    first = store.create(PLAN, keyed)
    assert store.create(PLAN, keyed).rollout_id == first.rollout_id
    with pytest.raises(IdempotencyConflictError):
        store.create(replace(PLAN, alias="canary"), keyed)
    with pytest.raises(FailedPreconditionError):
        store.create(PLAN, Change("key:ben", "", "build-42"))
    assert roll_back(store, first)
    clock.now_s += 25 * 3600
    assert store.create(PLAN, keyed).rollout_id != first.rollout_id


def test_end_is_kept_with_its_figures_and_reason_and_newest_comes_first(
    store: RolloutStore, open_store: OpenStore, clock: Clock
) -> None:
    first = store.create(PLAN, ANNA)
    other = open_store()
    clock.now_s += 60
    assert roll_back(store, first)
    ended = store.get("tweets", first.rollout_id)
    assert (ended.state, ended.verdict, ended.ended_s) == (State.ROLLED_BACK, Verdict.WORSE, clock.now_s)
    assert ended.arms == ARMS
    assert ended.decisions[-1] == decided(Action.ROLL_BACK)
    assert other.running == (first,)
    other.refresh()
    assert other.running == ()
    assert not other.routes
    second = store.create(PLAN, ANNA)
    assert [rollout.rollout_id for rollout in other.list("tweets")] == [second.rollout_id, first.rollout_id]


def test_rollout_of_another_adapter_is_not_found(store: RolloutStore) -> None:
    begun = store.create(PLAN, ANNA)
    for adapter, rollout_id in (("other", begun.rollout_id), ("tweets", "ro_" + "0" * 20), ("tweets", "ro_\0")):
        with pytest.raises(NotFoundError):
            store.get(adapter, rollout_id)


def test_verdict_is_news_once(store: RolloutStore, open_store: OpenStore) -> None:
    begun = store.create(PLAN, ANNA)
    other = open_store()
    hold = decided(Action.HOLD)
    noted = [each.note_verdict(begun, Verdict.INCONCLUSIVE, hold) for each in (store, other)]
    assert noted == [True, False]
    found = store.get("tweets", begun.rollout_id)
    assert (found.verdict, [decision.action for decision in found.decisions]) == (
        Verdict.INCONCLUSIVE,
        [Action.START, Action.HOLD],
    )


def test_promotion_that_is_settled_cannot_be_undone_and_ends_once(store: RolloutStore, open_store: OpenStore) -> None:
    begun = store.create(PLAN, ANNA)
    promote = replace(PROMOTE, by="key:anna")
    assert store.decide_promotion(begun, Verdict.BETTER, promote, "10.0.0.7")
    assert not store.decide_promotion(begun, Verdict.BETTER, promote, "")
    assert not roll_back(store, begun)
    (seen,) = open_store().running
    assert (seen.promotion, seen.origin, seen.verdict) == (promote, "10.0.0.7", Verdict.BETTER)
    assert [store.finish(seen, State.PROMOTED, Verdict.BETTER, ARMS, None) for _ in range(2)] == [True, False]
    ended = store.get("tweets", begun.rollout_id)
    assert (ended.state, [decision.action for decision in ended.decisions]) == (
        State.PROMOTED,
        [Action.START, Action.PROMOTE],
    )


def test_servers_that_decide_at_once_decide_once(store: RolloutStore, open_store: OpenStore) -> None:
    for _ in range(5):
        begun = store.create(PLAN, ANNA)
        promote = partial(RolloutStore.decide_promotion, verdict=Verdict.BETTER, decision=PROMOTE, origin="")
        assert at_once([partial(decide, open_store(), begun) for decide in (promote, roll_back) * 2]) == 1
        found = store.get("tweets", begun.rollout_id)
        assert len(found.decisions) == 2
        if found.promotion is not None:
            store.finish(found, State.PROMOTED, Verdict.BETTER, ARMS, None)


def test_tables_are_those_of_the_migrations(database_url: str) -> None:
    _, writer = open_database(database_url, schema.SCRIPTS, schema.VERSION_TABLE)
    options = {"compare_type": True, "include_object": lambda _o, name, *_: name != schema.VERSION_TABLE}
    with writer.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.METADATA) == []
        indexes = {index["name"] for index in sa.inspect(connection).get_indexes("rollouts")}
    assert indexes == {"one_running_rollout_per_alias", "rollouts_by_adapter"}
    writer.dispose()


@pytest.mark.parametrize(
    "terms",
    [
        {"percent": 0},
        {"percent": 100},
        {"mode": Mode.SHADOW, "percent": 101},
        {"min_effect": -1},
        {"min_effect": float("nan")},
        {"max_num_requests": 0},
        {"max_error_rate_increase": 2},
        {"max_latency_ratio": 0.5},
        {"metric": ""},
        {"metric": "rouge L"},
    ],
)
def test_terms_out_of_range_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Terms(**terms)  # type: ignore[arg-type]
    assert caught.value.param in terms


def test_version_is_not_compared_with_itself() -> None:
    with pytest.raises(InvalidArgumentError):
        Plan("a", "stable", 2, 2)
