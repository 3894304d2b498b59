"""Whose requests wait, and who gives way in a full queue."""

import pytest

from server.core.errors import DeadlineExceededError, Refusal, ResourceExhaustedError
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest
from server.engine.pace import MARGIN, Pace
from server.engine.waiting import Place, WaitingCounts


def filled(max_num: int, *places: tuple[str, int]) -> WaitingCounts:
    counts = WaitingCounts(max_num)
    for tenant, priority in places:
        assert counts.enter(Place(tenant, priority)) is None
    return counts


def test_full_queue_of_one_tenant_refuses() -> None:
    counts = filled(2, ("a", 0), ("a", 0))
    with pytest.raises(ResourceExhaustedError, match="2 waiting") as refused:
        counts.enter(Place("a", 0))
    assert refused.value.refusal is Refusal.QUEUE_FULL
    counts.leave(Place("a", 0))
    assert counts.enter(Place("a", 0)) is None


def test_flood_gives_way_to_others_until_all_have_as_many() -> None:
    flood = Place("flood", 0)
    counts = filled(4, flood, flood, flood, flood)
    assert counts.enter(Place("b", 0)) == flood
    assert counts.num == 4
    # Another place would turn three against one into two against two, and a third one around.
    assert counts.enter(Place("b", 0)) == flood
    for tenant in ("b", "flood"):
        with pytest.raises(ResourceExhaustedError):
            counts.enter(Place(tenant, 0))
    assert counts.num == 4


def test_flood_gives_way_whatever_class_it_claims_and_with_its_last_one_first() -> None:
    counts = filled(4, ("flood", -2), ("flood", -2), ("flood", -1), ("flood", -1))
    assert counts.enter(Place("b", 2)) == Place("flood", -1)


def test_tenant_gives_up_its_own_place_for_a_request_of_an_earlier_class_only() -> None:
    counts = filled(3, ("a", 0), ("a", 2), ("b", 1))
    assert counts.displaced_by(Place("a", 1)) == Place("a", 2)
    with pytest.raises(ResourceExhaustedError):
        counts.displaced_by(Place("a", 2))
    with pytest.raises(ResourceExhaustedError):
        counts.displaced_by(Place("b", 1))


def test_place_is_given_up_once_whether_its_request_ends_for_it_or_starts_before() -> None:
    flood, light = Place("flood", 0), Place("light", 0)
    counts = filled(3, flood, flood, flood)
    assert counts.enter(light) == flood
    counts.leave(flood)  # one started, just then
    counts.count(flood)  # one is ended for the light one
    counts.leave(flood)
    assert (counts.num, counts.num_before(Place("flood", 1))) == (2, 2)


def test_queue_without_places_refuses_everybody() -> None:
    with pytest.raises(ResourceExhaustedError):
        WaitingCounts(0).enter(Place("a", 0))


def test_nothing_is_kept_of_tenants_that_left() -> None:
    counts = WaitingCounts(100)
    for number in range(50):
        counts.enter(Place(f"tenant-{number}", 0))
        counts.leave(Place(f"tenant-{number}", 0))
    assert (counts.num, len(counts._by_place)) == (0, 0)


def test_requests_before_a_new_one_are_those_of_earlier_classes_and_its_turns() -> None:
    counts = filled(100, *[("flood", 0)] * 50, *[("a", 0)] * 3, *[("b", 0)] * 2, ("flood", -1), *[("b", 1)] * 9)
    assert counts.num_before(Place("new", 0)) == 1
    assert counts.num_before(Place("a", 0)) == 1 + 3 + 3 + 2
    assert counts.num_before(Place("flood", 0)) == 1 + 50 + 3 + 2
    assert counts.num_before(Place("new", -2)) == 0


def asking(tenant: str, deadline_s: float | None) -> EngineRequest:
    return EngineRequest("r", (5,), SamplingParams(max_new_tokens=1), deadline_s=deadline_s, tenant=tenant)


PACE = Pace(start_s=1.0, first_s=0.5, step_s=0.1, num_tokens=40.0)


def test_request_that_would_be_late_is_refused_and_not_before_others_wait() -> None:
    counts = filled(100, *[("flood", 0)] * 10)
    late, in_time = asking("flood", 100 + MARGIN * 10.4), asking("flood", 100 + MARGIN * 10.6)
    with pytest.raises(DeadlineExceededError):
        counts.check_in_time(late, PACE, 100.0, 0)
    counts.check_in_time(in_time, PACE, 100.0, 0)
    counts.check_in_time(late, PACE, 100.0, 1)
    counts.check_in_time(asking("flood", 100.0), PACE, 100.0, 10)
    counts.check_in_time(asking("light", 100.0), PACE, 100.0, 0)


def test_wait_that_is_longer_than_any_is_to_be_is_refused_with_when_to_try_again() -> None:
    counts = WaitingCounts(100, max_wait_s=4.0)
    for _ in range(10):
        counts.enter(Place("flood", 0))
    with pytest.raises(ResourceExhaustedError) as refused:
        counts.check_in_time(asking("flood", None), PACE, 100.0, 5)
    assert (refused.value.refusal, refused.value.retry_after_s) == (Refusal.TOO_LONG_A_WAIT, 1.0)
    counts.check_in_time(asking("flood", None), PACE, 100.0, 6)
    counts.check_in_time(asking("light", None), PACE, 100.0, 0)
    counts.check_in_time(asking("flood", None), None, 100.0, 0)


def test_request_without_deadline_or_without_a_known_pace_is_never_late() -> None:
    counts = filled(100, *[("flood", 0)] * 10)
    counts.check_in_time(asking("flood", None), PACE, 100.0, 0)
    counts.check_in_time(asking("flood", 100.0), None, 100.0, 0)
