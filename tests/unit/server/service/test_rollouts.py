"""The door to rollouts: what callers may begin, see and decide, and the looks again and again."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import AdapterNotFoundError, AdapterNotReadyError, StoreError
from adapters.manifest import AdapterKind, AdapterManifest
from adapters.registry import Registry
from server.core.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from server.core.principal import Principal, Scope
from server.evaluation.outcome import Arm, RolloutOutcome
from server.evaluation.rollouts.records import Rollout, State, Terms
from server.evaluation.rollouts.store import RolloutStore
from server.observability.metrics import Metrics
from server.service.rollout_gate import RolloutGate
from server.service.rollouts import RolloutConfig, RolloutService
from tests.fixtures.registry import ANNA, add_version
from tests.unit.server.service.conftest import ANYONE

TENANT = Principal("key:ben", frozenset({Scope.OPERATE}), ("other-*",), "10.0.0.9")


class Outcomes:
    def __init__(self) -> None:
        self.ended: list[RolloutOutcome] = []

    def rollout_outcomes(self, _rollout_id: str) -> list[RolloutOutcome]:
        return self.ended


class Door:
    def __init__(self, url: str, look_s: float = 0.01) -> None:
        self.registry, self.store, self.outcomes = Registry(url), RolloutStore(url), Outcomes()
        metrics = Metrics()
        self.gate = RolloutGate(self.store, self.registry, self.outcomes, metrics)
        self.service = RolloutService(self.store, self.registry, self.gate, metrics, look_s=look_s)

    async def begin(self, principal: Principal = ANYONE, name: str = "a", **fields: Any) -> Rollout:
        given: dict[str, Any] = {"alias": "stable", "candidate_version": 2, "terms": Terms(), **fields}
        return await self.service.begin(principal, name, **given)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(f"sqlite:///{tmp_path / 'registry.db'}")
    add_version(door.registry, "a", 1, "stable")
    add_version(door.registry, "a", 2)
    yield door
    door.registry.close()
    door.store.close()


async def test_rollout_is_begun_with_what_the_alias_points_at_and_shown_with_its_figures(door: Door) -> None:
    begun = await door.begin()
    assert (begun.plan.stable_version, begun.plan.candidate_version) == (1, 2)
    door.outcomes.ended = [RolloutOutcome(Arm.CANDIDATE, "OK", 0.2, {}, 0.0)]
    for shown in (await door.service.get(ANYONE, "a", begun.rollout_id), *await door.service.list(ANYONE, "a")):
        assert (shown.arms.candidate.num_requests, shown.arms.candidate.p95_e2e_ms) == (1, pytest.approx(200))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": "none"}, AdapterNotFoundError),
        ({"alias": "canary"}, AdapterNotFoundError),
        ({"candidate_version": 9}, AdapterNotFoundError),
        ({"candidate_version": 1}, InvalidArgumentError),
        ({"candidate_version": 3}, AdapterNotReadyError),
        ({"candidate_version": 4}, FailedPreconditionError),
    ],
)
async def test_candidate_that_cannot_be_tried_is_refused(
    door: Door, fields: dict[str, Any], error: type[Exception]
) -> None:
    add_version(door.registry, "a", 3)
    door.registry.retire("a", 3, reason="bad", change=ANNA, force=False)
    add_version(door.registry, "a", 4, manifest=AdapterManifest("x", AdapterKind.PROMPT, num_virtual_tokens=4))
    with pytest.raises(error):
        await door.begin(**fields)
    assert door.store.running == ()


async def test_adapter_that_does_not_exist_for_a_caller_has_no_rollouts(door: Door) -> None:
    begun = await door.begin()
    service = door.service
    for asked in (
        door.begin(TENANT),
        service.list(TENANT, "a"),
        service.get(TENANT, "a", begun.rollout_id),
        service.promote(TENANT, "a", begun.rollout_id),
        service.roll_back(TENANT, "a", begun.rollout_id),
    ):
        with pytest.raises(AdapterNotFoundError, match="there is no adapter 'a'"):
            await asked
    with pytest.raises(NotFoundError):
        await service.get(ANYONE, "a", "ro_other")
    assert door.store.running == (begun,)


async def test_caller_decides_by_hand_under_its_own_name(door: Door) -> None:
    operator = Principal("key:anna", frozenset({Scope.OPERATE}), origin="10.0.0.7")
    begun = await door.begin(operator)
    rolled_back = await door.service.roll_back(operator, "a", begun.rollout_id)
    assert (rolled_back.state, rolled_back.decisions[-1].by) == (State.ROLLED_BACK, "key:anna")
    second = await door.begin(operator)
    promoted = await door.service.promote(operator, "a", second.rollout_id)
    assert (promoted.state, door.registry.get("a").aliases) == (State.PROMOTED, {"stable": 2})
    assert door.registry.audit(name="a")[0].origin == "10.0.0.7"


async def test_looks_go_on_through_an_outage_which_is_told_once(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    num_looks = 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks < 4:
            raise StoreError("the database cannot be used now")

    monkeypatch.setattr(door.gate, "look", look)
    door.service.start()
    async with asyncio.timeout(5):
        while num_looks < 6:  # noqa: ASYNC110 - a thread, without an event
            await asyncio.sleep(0.005)
    await door.service.stop()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "looking at rollouts fails: the database cannot be used now"
    ]
    seen = num_looks
    await asyncio.sleep(0.05)
    assert num_looks == seen


@pytest.mark.parametrize("config", [{"look_s": 0}, {"shadow_timeout_s": 0}, {"max_num_shadows": -1}])
def test_settings_without_a_pause_or_an_end_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        RolloutConfig(**config)
