"""Whose requests wait, and who gives way in a full queue."""

import pytest

from server.core.errors import ResourceExhaustedError
from server.engine.waiting import WaitingCounts


def test_full_queue_of_one_tenant_refuses() -> None:
    counts = WaitingCounts(2)
    assert [counts.enter("a"), counts.enter("a")] == [None, None]
    with pytest.raises(ResourceExhaustedError, match="queue of 2"):
        counts.enter("a")
    counts.leave("a")
    assert counts.enter("a") is None


def test_flood_gives_way_to_others_until_all_have_as_many() -> None:
    counts = WaitingCounts(4)
    for _ in range(4):
        counts.enter("flood")
    assert counts.enter("b") == "flood"
    counts.leave("flood")
    assert counts.num == 4
    # Another place would turn three against one into two against two, and a third one around.
    assert counts.enter("b") == "flood"
    counts.leave("flood")
    for tenant in ("b", "flood"):
        with pytest.raises(ResourceExhaustedError):
            counts.enter(tenant)
    assert counts.num == 4


def test_queue_without_places_refuses_everybody() -> None:
    with pytest.raises(ResourceExhaustedError):
        WaitingCounts(0).enter("a")


def test_nothing_is_kept_of_tenants_that_left() -> None:
    counts = WaitingCounts(100)
    for number in range(50):
        counts.enter(f"tenant-{number}")
        counts.leave(f"tenant-{number}")
    assert (counts.num, len(counts._by_tenant)) == (0, 0)
