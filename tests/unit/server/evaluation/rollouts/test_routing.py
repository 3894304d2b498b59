"""Routes: the right share, the same side for the same key, another side in another rollout."""

from dataclasses import replace

import pytest

from server.evaluation.outcome import Arm
from server.evaluation.rollouts.records import Action, Decision, Mode, Plan, Rollout, State, Terms, Verdict
from server.evaluation.rollouts.routing import RouteTable, route_table, share_of


def rollout(rollout_id: str = "ro_1", **terms: object) -> Rollout:
    plan = Plan("a", "stable", 1, 2, Terms(**terms))  # type: ignore[arg-type]
    return Rollout(rollout_id, plan, State.RUNNING, Verdict.NO_DATA, 0.0)


def versions(table: RouteTable, count: int = 4000) -> list[int]:
    routes = [table.route("a", "stable", 1, f"user {number}") for number in range(count)]
    return [route.version for route in routes if route is not None]


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_canary_gets_its_share_of_the_keys_and_all_take_part(percent: int) -> None:
    found = versions(route_table([rollout(percent=percent)]))
    assert len(found) == 4000
    assert found.count(2) / 4000 == pytest.approx(percent / 100, abs=0.03)


def test_key_stays_on_its_side_and_is_dealt_anew_in_the_next_rollout() -> None:
    first, second = route_table([rollout("ro_1")]), route_table([rollout("ro_2")])
    assert versions(first) == versions(route_table([rollout("ro_1", metric="bleu")]))
    same = sum(one == other for one, other in zip(versions(first), versions(second), strict=True))
    assert 0.45 < same / 4000 < 0.55


def test_arm_says_which_version_it_was() -> None:
    table = route_table([rollout()])
    for number in range(50):
        route = table.route("a", "stable", 1, str(number))
        assert route is not None
        assert route.part.rollout_id == "ro_1"
        assert (route.part.arm, route.version) in [(Arm.STABLE, 1), (Arm.CANDIDATE, 2)]


def test_shadow_is_never_answered_and_only_its_share_takes_part() -> None:
    table = route_table([rollout(mode=Mode.SHADOW, percent=25)])
    found = versions(table)
    assert set(found) == {1}
    assert len(found) / 4000 == pytest.approx(0.25, abs=0.03)
    assert (table.shadow_version("ro_1"), table.shadow_version("ro_2")) == (2, None)
    assert route_table([rollout()]).shadow_version("ro_1") is None


def test_other_adapters_other_aliases_and_moved_ones_take_no_part() -> None:
    table = route_table([rollout()])
    assert table.route("b", "stable", 1, "k") is table.route("a", "canary", 1, "k") is None
    assert table.route("a", "stable", 3, "k") is None
    assert not RouteTable()


def test_rollout_that_is_being_promoted_routes_no_more() -> None:
    decision = Decision(0.0, "server", Action.PROMOTE, "")
    assert not route_table([replace(rollout(), promotion=decision)])


def test_any_key_is_taken() -> None:
    assert {0.0 <= share_of("ro_1", key) < 1.0 for key in ("", "\ud800", "x" * 100_000, "ü\0")} == {True}
