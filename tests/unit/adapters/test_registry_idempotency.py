"""The same change under the same key, on SQLite and PostgreSQL."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapters.errors import AdapterNotFoundError, IdempotencyConflictError
from adapters.registry import Change, Registry, VersionState
from tests.fixtures.registry import ANNA, MANIFEST, Clock, add_version, digest
from tests.unit.adapters.conftest import Opener

KEYED = replace(ANNA, idempotency_key="k1")
CHANGES: dict[str, Callable[[Registry, Change], object]] = {
    "set_alias": lambda registry, change: registry.set_alias("news", "stable", 3, change),
    "delete_alias": lambda registry, change: registry.delete_alias("news", "stable", change),
    "rollback": lambda registry, change: registry.rollback("news", "stable", change),
    "retire": lambda registry, change: registry.retire("news", 3, reason="old", change=change, force=False),
    "label": lambda registry, change: registry.label("news", 3, tags=("x",), description=None, change=change),
    "upload": lambda registry, change: add_version(registry, "news", 9, "new", key=change.idempotency_key),
}


@pytest.fixture
def news(registry: Registry) -> Registry:
    add_version(registry, "news", 1, "stable")
    add_version(registry, "news", 2, "stable")
    add_version(registry, "news", 3)
    return registry


@pytest.mark.parametrize("action", CHANGES)
def test_change_again_under_its_key_gives_the_first_answer_and_changes_nothing(news: Registry, action: str) -> None:
    first = CHANGES[action](news, KEYED)
    add_version(news, "news", 4, "stable")
    rows, record = news.audit(), news.get("news")
    assert CHANGES[action](news, KEYED) == first
    assert news.get("news") == record
    assert news.audit() == rows


@pytest.mark.parametrize("action", CHANGES)
def test_other_change_under_the_same_key_is_a_conflict_and_changes_nothing(news: Registry, action: str) -> None:
    news.set_alias("news", "canary", 1, KEYED)
    rows, record = news.audit(), news.get("news")
    with pytest.raises(IdempotencyConflictError):
        CHANGES[action](news, KEYED)
    assert news.get("news") == record
    assert news.audit() == rows


@pytest.mark.parametrize(
    "other",
    [
        lambda registry: registry.set_alias("news", "stable", 1, KEYED),
        lambda registry: registry.set_alias("news", "canary", 3, KEYED),
        lambda registry: registry.set_alias("mail", "stable", 3, KEYED),
    ],
)
def test_same_action_with_another_parameter_is_a_conflict(news: Registry, other: Callable[[Registry], object]) -> None:
    CHANGES["set_alias"](news, KEYED)
    with pytest.raises(IdempotencyConflictError):
        other(news)


def test_upload_of_other_bytes_under_the_same_key_is_a_conflict_and_leaves_nothing(news: Registry) -> None:
    add_version(news, "news", 8, key="k1")
    record = news.get("news")
    with pytest.raises(IdempotencyConflictError):
        add_version(news, "news", 9, key="k1")
    assert news.get("news") == record


def test_change_that_changed_nothing_keeps_its_answer_too(news: Registry) -> None:
    first = news.set_alias("news", "stable", 2, KEYED)
    news.set_alias("news", "stable", 1, ANNA)
    assert news.set_alias("news", "stable", 2, KEYED) == first
    assert news.resolve("news").version == 1


def test_keys_of_two_callers_have_nothing_to_do_with_each_other(news: Registry) -> None:
    bert = Change("key:bert", idempotency_key="k1")
    news.set_alias("news", "stable", 3, KEYED)
    assert news.set_alias("news", "canary", 1, bert).aliases == {"stable": 3, "canary": 1}


def test_refused_change_does_not_use_up_its_key(news: Registry) -> None:
    with pytest.raises(AdapterNotFoundError):
        news.set_alias("news", "stable", 4, KEYED)
    add_version(news, "news", 4)
    assert news.set_alias("news", "stable", 4, KEYED).aliases == {"stable": 4}


def test_key_is_forgotten_after_a_day(news: Registry, clock: Clock) -> None:
    news.set_alias("news", "stable", 3, KEYED)
    clock.now_s += 24 * 3600.0
    assert news.set_alias("news", "stable", 3, KEYED).aliases["stable"] == 3
    clock.now_s += 1.0
    assert news.set_alias("news", "canary", 1, KEYED).aliases["canary"] == 1


def test_key_is_known_to_every_server_and_after_a_restart(news: Registry, open_registry: Opener) -> None:
    first = news.rollback("news", "stable", KEYED)
    for instance in ("other", "mine"):
        assert open_registry(instance).rollback("news", "stable", KEYED) == first


def test_upload_again_under_its_key_removes_what_was_begun(news: Registry) -> None:
    first = add_version(news, "news", 9, key="k1")
    begun = news.begin_version("news", ANNA, lease_s=60.0)
    again = news.complete_version(
        "news",
        begun.version,
        digest=digest(9),
        manifest=MANIFEST,
        size_bytes=123,
        alias=None,
        tags=(),
        change=KEYED,
    )
    assert again == first
    assert {version.state for version in news.get("news").versions} == {VersionState.READY}
