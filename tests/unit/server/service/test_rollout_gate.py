"""The gate: acts on verdicts once, moves the alias only from where it was, and finishes what a dead server began."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from adapters.errors import StoreError
from adapters.registry import Change, Registry
from server.core.errors import ErrorCode, FailedPreconditionError
from server.evaluation.outcome import Arm, RolloutOutcome
from server.evaluation.rollouts.records import Action, Decision, Plan, Rollout, State, Terms, Verdict
from server.evaluation.rollouts.store import RolloutStore
from server.observability.metrics import Metrics
from server.service.rollout_gate import RolloutGate
from tests.fixtures.registry import ANNA, add_version


@dataclass
class Outcomes:
    """What the rollouts' requests are said to be."""

    ended: list[RolloutOutcome] = field(default_factory=list)

    def rollout_outcomes(self, rollout_id: str) -> list[RolloutOutcome]:
        assert rollout_id.startswith("ro_")
        return list(self.ended)

    def add(self, arm: Arm, scores: list[float], code: str = "OK") -> None:
        self.ended += [RolloutOutcome(arm, code, 0.1, {"rougeL": score}, 0.0) for score in scores]

    def favour(self, arm: Arm) -> None:
        other = Arm.STABLE if arm is Arm.CANDIDATE else Arm.CANDIDATE
        self.add(arm, [60.0, 40.0, 50.0] * 30)
        self.add(other, [20.0, 30.0, 10.0] * 30)


@dataclass
class Server:
    registry: Registry
    store: RolloutStore
    gate: RolloutGate
    metrics: Metrics

    def now(self, rollout: Rollout) -> Rollout:
        return self.store.get("a", rollout.rollout_id)

    def stable(self) -> int | None:
        self.registry.refresh()
        return self.registry.get("a").aliases.get("stable")


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
def open_server(tmp_path: Path, outcomes: Outcomes) -> Iterator[Callable[[], Server]]:
    """Opens one database again and again, as several servers would."""
    opened: list[Server] = []

    def open_one() -> Server:
        url, metrics = f"sqlite:///{tmp_path / 'registry.db'}", Metrics()
        registry, store = Registry(url), RolloutStore(url)
        opened.append(Server(registry, store, RolloutGate(store, registry, outcomes, metrics), metrics))
        return opened[-1]

    yield open_one
    for server in opened:
        server.registry.close()
        server.store.close()


@pytest.fixture
def server(open_server: Callable[[], Server]) -> Server:
    server = open_server()
    add_version(server.registry, "a", 1, "stable")
    add_version(server.registry, "a", 2)
    add_version(server.registry, "a", 3)
    return server


def begin(server: Server, **terms: object) -> Rollout:
    return server.store.create(Plan("a", "stable", 1, 2, Terms(**terms)), ANNA)  # type: ignore[arg-type]


def actions(rollout: Rollout) -> list[Action]:
    return [decision.action for decision in rollout.decisions]


def test_better_candidate_is_promoted_as_the_server(
    server: Server, outcomes: Outcomes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begun = begin(server)
    outcomes.favour(Arm.CANDIDATE)
    server.gate.look()
    ended = server.now(begun)
    assert (ended.state, ended.verdict, server.stable()) == (State.PROMOTED, Verdict.BETTER, 2)
    assert actions(ended) == [Action.START, Action.PROMOTE]
    decision = ended.decisions[-1]
    assert decision.by == "server"
    assert decision.data["verdict"] == "BETTER"
    arms = decision.data["arms"]
    assert isinstance(arms, Mapping)
    assert arms["candidate"]["num_scored"] == 90
    newest = server.registry.audit(name="a")[0]
    assert (newest.who, newest.action, newest.version) == ("server", "set_alias", 2)
    (told,) = [record for record in caplog.records if getattr(record, "rollout_id", "") == begun.rollout_id]
    assert vars(told)["decision"]["data"] == decision.data
    assert server.metrics.registry.get_sample_value("medley_rollout_decisions_total", {"action": "promote"}) == 1
    # Where it pointed before is one rollback away, as after any promotion.
    assert server.registry.rollback("a", "stable", ANNA).aliases == {"stable": 1}
    server.gate.look()
    assert server.stable() == 1


@pytest.mark.parametrize("arm", [Arm.STABLE, None])
def test_worse_and_failing_candidates_are_rolled_back(server: Server, outcomes: Outcomes, arm: Arm | None) -> None:
    begun = begin(server)
    outcomes.favour(arm or Arm.CANDIDATE)
    if arm is None:
        outcomes.add(Arm.CANDIDATE, [0.0] * 60, ErrorCode.INTERNAL)
    server.gate.look()
    ended = server.now(begun)
    expected = Verdict.WORSE if arm else Verdict.GUARD_RAIL
    assert (ended.state, ended.verdict, server.stable()) == (State.ROLLED_BACK, expected, 1)
    assert actions(ended) == [Action.START, Action.ROLL_BACK]
    assert ended.arms.candidate.num_requests >= 90


def test_undecided_rollout_holds_with_a_reason_once_and_ends_at_its_limit(server: Server, outcomes: Outcomes) -> None:
    begun = begin(server, max_num_requests=60)
    server.gate.look()
    assert actions(server.now(begun)) == [Action.START]
    for arm in (Arm.STABLE, Arm.CANDIDATE):
        outcomes.add(arm, [20.0, 30.0] * 10)
    for _ in range(3):
        server.gate.look()
    held = server.now(begun)
    assert (held.state, held.verdict) == (State.RUNNING, Verdict.INCONCLUSIVE)
    assert actions(held) == [Action.START, Action.HOLD]
    for arm in (Arm.STABLE, Arm.CANDIDATE):
        outcomes.add(arm, [20.0, 30.0] * 5)
    server.gate.look()
    ended = server.now(begun)
    assert (ended.state, ended.verdict, server.stable()) == (State.ENDED, Verdict.INCONCLUSIVE, 1)
    assert "60 requests" in ended.decisions[-1].reason


def test_rollout_by_hand_only_says_what_it_finds_until_somebody_decides(server: Server, outcomes: Outcomes) -> None:
    begun = begin(server, automatic=False)
    outcomes.favour(Arm.CANDIDATE)
    for _ in range(2):
        server.gate.look()
    held = server.now(begun)
    assert (held.state, held.verdict, server.stable()) == (State.RUNNING, Verdict.BETTER, 1)
    assert actions(held) == [Action.START, Action.HOLD]
    promoted = server.gate.promote(held, Change("key:anna", "10.0.0.7"))
    assert (promoted.state, server.stable()) == (State.PROMOTED, 2)
    assert (promoted.decisions[-1].by, promoted.decisions[-1].reason) == ("key:anna", "by hand")
    newest = server.registry.audit(name="a")[0]
    assert (newest.who, newest.origin) == ("key:anna", "10.0.0.7")
    assert server.gate.promote(promoted, ANNA) == promoted
    with pytest.raises(FailedPreconditionError, match="promoted"):
        server.gate.roll_back(promoted, ANNA)


def test_rollout_is_rolled_back_by_hand_once(server: Server) -> None:
    begun = begin(server)
    rolled_back = server.gate.roll_back(begun, ANNA)
    assert (rolled_back.state, rolled_back.decisions[-1].by, server.stable()) == (State.ROLLED_BACK, ANNA.who, 1)
    assert server.gate.roll_back(begun, ANNA) == rolled_back
    with pytest.raises(FailedPreconditionError, match="rolled back"):
        server.gate.promote(begun, ANNA)


def test_alias_moved_by_hand_ends_the_rollout_and_is_left_alone(server: Server, outcomes: Outcomes) -> None:
    begun = begin(server)
    outcomes.favour(Arm.CANDIDATE)
    server.registry.set_alias("a", "stable", 3, ANNA)
    server.gate.look()
    ended = server.now(begun)
    assert (ended.state, server.stable(), actions(ended)) == (State.ENDED, 3, [Action.START, Action.END])
    assert "version 3" in ended.decisions[-1].reason


def test_alias_moved_while_it_is_promoted_is_left_alone(
    server: Server, open_server: Callable[[], Server], outcomes: Outcomes
) -> None:
    begun = begin(server)
    outcomes.favour(Arm.CANDIDATE)
    # Another server's change that this one has not seen.
    open_server().registry.set_alias("a", "stable", 3, ANNA)
    server.gate.look()
    ended = server.now(begun)
    assert (ended.state, server.stable()) == (State.ENDED, 3)
    assert actions(ended) == [Action.START, Action.PROMOTE, Action.END]
    with pytest.raises(FailedPreconditionError, match="version 3"):
        server.gate.promote(begun, ANNA)


@pytest.mark.parametrize("what", ["retired", "alias deleted"])
def test_rollout_whose_candidate_or_alias_is_gone_ends(server: Server, what: str) -> None:
    begun = begin(server)
    if what == "retired":
        server.registry.retire("a", 2, reason="bad", change=ANNA, force=False)
    else:
        server.registry.delete_alias("a", "stable", ANNA)
    server.gate.look()
    ended = server.now(begun)
    assert ended.state is State.ENDED
    assert ("retired" in ended.decisions[-1].reason) == (what == "retired")


def test_promotion_of_a_server_that_died_is_carried_out_by_another_once(
    server: Server, open_server: Callable[[], Server]
) -> None:
    begun = begin(server)
    decision = Decision(1.0, "server", Action.PROMOTE, "it was better")
    assert server.store.decide_promotion(begun, Verdict.BETTER, decision, "")
    first, second = open_server(), open_server()
    first.gate.look()
    assert (first.now(begun).state, first.stable()) == (State.PROMOTED, 2)
    first.registry.set_alias("a", "stable", 1, ANNA)
    # It still believes that the promotion is to be carried out; the alias was moved back by hand since.
    second.gate.look()
    assert second.stable() == 1
    assert actions(second.now(begun)) == [Action.START, Action.PROMOTE]


def test_promotion_that_the_database_interrupts_is_tried_again(
    server: Server, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = begin(server)
    outcomes.favour(Arm.CANDIDATE)
    with monkeypatch.context() as patch:

        def away(*_args: object, **_fields: object) -> None:
            raise StoreError("the database cannot be used now")

        patch.setattr(server.registry, "set_alias", away)
        with pytest.raises(StoreError):
            server.gate.look()
    assert (server.now(begun).state, server.stable()) == (State.RUNNING, 1)
    with pytest.raises(FailedPreconditionError):
        server.gate.roll_back(replace(server.now(begun), promotion=None), ANNA)
    assert (server.now(begun).state, server.stable()) == (State.PROMOTED, 2)


def test_two_servers_that_look_decide_once(
    server: Server, open_server: Callable[[], Server], outcomes: Outcomes
) -> None:
    begun = begin(server)
    other = open_server()
    outcomes.favour(Arm.STABLE)
    for each in (server, other):
        each.gate.look()
    assert actions(server.now(begun)) == [Action.START, Action.ROLL_BACK]
