"""Promote, roll back and remove aliases, on SQLite and PostgreSQL."""

import pytest

from adapters.errors import AdapterNotFoundError, AdapterNotReadyError, InvalidAdapterReferenceError, RollbackError
from adapters.registry import Registry
from tests.fixtures.registry import ANNA, add_version


@pytest.fixture
def news(registry: Registry) -> Registry:
    """A registry with versions 1 to 4 of ``news``, ``stable`` at 1."""
    add_version(registry, "news", 1, "stable")
    for number in (2, 3, 4):
        add_version(registry, "news", number)
    return registry


def promote(registry: Registry, *versions: int) -> None:
    for version in versions:
        registry.set_alias("news", "stable", version, ANNA)


def roll_back(registry: Registry) -> int:
    return registry.rollback("news", "stable", ANNA).aliases["stable"]


def test_rollback_twice_goes_two_back(news: Registry) -> None:
    promote(news, 2, 3)
    assert [roll_back(news), roll_back(news)] == [2, 1]
    assert news.resolve("news").version == 1
    with pytest.raises(RollbackError):
        roll_back(news)
    assert news.resolve("news").version == 1


def test_rollback_then_promote_forgets_what_was_rolled_back(news: Registry) -> None:
    promote(news, 2)
    roll_back(news)
    promote(news, 3)
    assert roll_back(news) == 1


def test_rollback_passes_over_retired_targets(news: Registry) -> None:
    promote(news, 2, 3, 4)
    for version in (3, 2):
        news.retire("news", version, reason="bad", change=ANNA, force=False)
    assert roll_back(news) == 1
    with pytest.raises(RollbackError):
        roll_back(news)


def test_rollback_passes_over_the_target_it_has(news: Registry) -> None:
    promote(news, 2, 1, 3)
    news.retire("news", 2, reason="bad", change=ANNA, force=False)
    assert roll_back(news) == 1
    with pytest.raises(RollbackError):
        roll_back(news)


def test_rollback_keeps_the_latest_hundred_targets(news: Registry) -> None:
    promote(news, *(2 + number % 2 for number in range(150)))
    for _ in range(100):
        roll_back(news)
    with pytest.raises(RollbackError):
        roll_back(news)


def test_set_alias_where_it_points_changes_nothing(news: Registry) -> None:
    promote(news, 2)
    generation, rows = news.generation, news.audit()
    promote(news, 2)
    assert (news.generation, news.audit()) == (generation, rows)
    assert roll_back(news) == 1


def test_upload_with_alias_is_rolled_back_as_a_promotion(news: Registry) -> None:
    assert add_version(news, "news", 5, "stable").version == 5
    assert roll_back(news) == 1


def test_delete_alias_forgets_its_targets(news: Registry) -> None:
    promote(news, 2)
    assert news.delete_alias("news", "stable", ANNA).aliases == {}
    assert news.resolve("news").version == 4
    for change in (news.delete_alias, news.rollback):
        with pytest.raises(AdapterNotFoundError):
            change("news", "stable", ANNA)
    promote(news, 3)
    with pytest.raises(RollbackError):
        roll_back(news)


def test_set_alias_refused_changes_nothing(news: Registry) -> None:
    begun = news.begin_version("news", ANNA, lease_s=60.0)
    rows = news.audit()
    with pytest.raises(AdapterNotFoundError):
        promote(news, 9)
    with pytest.raises(AdapterNotReadyError):
        promote(news, begun.version)
    with pytest.raises(InvalidAdapterReferenceError):
        news.set_alias("news", "b/c", 1, ANNA)
    assert news.resolve("news@stable").version == 1
    assert news.audit() == rows


def test_alias_is_moved_only_from_where_it_is_expected(registry: Registry) -> None:
    for number in (1, 2, 3):
        add_version(registry, "a", number, "stable" if number == 1 else None)
    assert registry.set_alias("a", "stable", 2, ANNA, expected=3).aliases == {"stable": 1}
    assert registry.set_alias("a", "stable", 2, ANNA, expected=1).aliases == {"stable": 2}
    num_changes = len(registry.audit(name="a"))
    # Where it points there already nothing is to be done, as without an expectation.
    assert registry.set_alias("a", "stable", 2, ANNA, expected=1).aliases == {"stable": 2}
    assert registry.set_alias("a", "canary", 2, ANNA, expected=1).aliases == {"stable": 2}
    assert len(registry.audit(name="a")) == num_changes
