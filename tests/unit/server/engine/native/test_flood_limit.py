"""Which tenants are floods, and when they are held back."""

from server.engine.native.flood_limit import LINGER_S, FloodLimit


def looked(waiting: dict[str, int], started: dict[str, int], limit: FloodLimit | None = None) -> FloodLimit:
    """Eight seats, of which floods may have two."""
    limit = limit or FloodLimit(8, 2)
    limit.look(waiting, started, 100.0)
    return limit


def test_flood_beside_a_light_tenant_has_no_more_rows_than_the_limit() -> None:
    limit = looked({"flood": 20, "light": 1}, {"flood": 1, "light": 1})
    assert limit.held == frozenset()
    limit.start("light")
    assert limit.held == frozenset()
    limit.start("flood")
    assert limit.held == {"flood"}


def test_flood_that_has_more_already_is_held_until_they_have_ended() -> None:
    assert looked({"flood": 20, "light": 0}, {"flood": 8, "light": 1}).held == {"flood"}
    assert looked({"flood": 20, "light": 0}, {"flood": 1, "light": 1}).held == frozenset()


def test_floods_share_the_limit() -> None:
    limit = looked({"a": 20, "b": 20, "light": 0}, {"a": 1, "b": 1, "light": 1})
    assert limit.held == {"a", "b"}


def test_tenant_alone_and_floods_among_themselves_are_not_held() -> None:
    assert looked({"flood": 20}, {"flood": 8}).held == frozenset()
    assert looked({"a": 20, "b": 5}, {"a": 4, "b": 4}).held == frozenset()


def test_tenants_within_their_shares_are_not_held() -> None:
    assert looked({"a": 0, "b": 0}, {"a": 4, "b": 4}).held == frozenset()
    assert looked({"a": 1, "b": 0}, {"a": 4, "b": 3}).held == {"a"}


def test_light_tenant_is_expected_back_for_a_while() -> None:
    limit = looked({"flood": 20, "light": 1}, {"flood": 8, "light": 0})
    limit.look({"flood": 20}, {"flood": 8}, 100.0 + LINGER_S)
    assert limit.held == {"flood"}
    limit.look({"flood": 20}, {"flood": 8}, 100.1 + LINGER_S)
    assert limit.held == frozenset()
    assert not limit._seen_s.keys() - {"flood"}


def test_tenants_with_one_row_each_are_light_however_many_there_are() -> None:
    limit = looked(dict.fromkeys("abcdefghijkl", 1), dict.fromkeys("abcdefghijkl", 0))
    # Three run, the last one thinks, the others wait.
    limit.look(
        dict.fromkeys("abc", 0) | dict.fromkeys("defghijk", 1),
        dict.fromkeys("abc", 1) | dict.fromkeys("defghijk", 0),
        100.5,
    )
    assert limit.held == frozenset()


def test_flood_that_is_away_for_a_moment_holds_no_other_one() -> None:
    limit = looked({"a": 20, "b": 20}, {"a": 4, "b": 4})
    limit.look({"a": 20}, {"a": 8}, 100.5)
    assert limit.held == frozenset()


def test_rows_that_may_start_are_those_of_light_tenants_and_what_the_limit_leaves() -> None:
    waiting = {"flood": 20, "light": 3}
    assert looked(waiting, {"flood": 1, "light": 0}).num_startable(waiting) == 4
    assert looked(waiting, {"flood": 8, "light": 0}).num_startable(waiting) == 3
    alone = {"flood": 20}
    assert looked(alone, {"flood": 1}).num_startable(alone) == 20
