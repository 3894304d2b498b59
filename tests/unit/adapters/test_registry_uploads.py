"""Uploads that end without a word: restarts, servers that die, time that runs out; on SQLite and PostgreSQL."""

import pytest

from adapters.errors import AdapterNotReadyError
from adapters.registry import Registry, VersionRecord
from tests.fixtures.registry import ANNA, MANIFEST, Clock, add_version, digest
from tests.unit.adapters.conftest import Opener


def complete(registry: Registry, version: int, number: int) -> VersionRecord:
    return registry.complete_version(
        "news", version, digest=digest(number), manifest=MANIFEST, size_bytes=1, alias=None, tags=(), change=ANNA
    )


def states(registry: Registry) -> list[tuple[int, str]]:
    return [(version.version, version.state) for record in registry.list() for version in record.versions]


def test_opening_again_removes_what_the_same_server_had_begun(registry: Registry, open_registry: Opener) -> None:
    add_version(registry, "news", 1)
    registry.begin_version("news", ANNA, lease_s=1e6)
    registry.mark_validating("mail", registry.begin_version("mail", ANNA, lease_s=1e6).version)
    other = open_registry("other")
    other.begin_version("news", ANNA, lease_s=1e6)
    again = open_registry("mine")
    assert states(again) == [(1, "ready"), (3, "uploading")]
    other.refresh()
    assert states(other) == [(1, "ready"), (3, "uploading")]


def test_opening_without_a_word_for_the_server_removes_nothing(registry: Registry, open_registry: Opener) -> None:
    registry.begin_version("news", ANNA, lease_s=1e6)
    assert states(open_registry()) == states(open_registry()) == [(1, "uploading")]


@pytest.mark.parametrize("own", [True, False])
def test_upload_out_of_time_is_removed_by_any_server(
    registry: Registry, open_registry: Opener, clock: Clock, own: bool
) -> None:
    other = open_registry("other")
    finder = registry if own else other
    registry.begin_version("news", ANNA, lease_s=60.0)
    clock.now_s += 60.0
    finder.refresh()
    assert states(finder) == [(1, "uploading")]
    clock.now_s += 1.0
    finder.refresh()
    assert states(finder) == []
    registry.refresh()
    assert states(registry) == []


def test_upload_that_was_removed_cannot_go_on(registry: Registry, open_registry: Opener, clock: Clock) -> None:
    registry.begin_version("news", ANNA, lease_s=60.0)
    clock.now_s += 61.0
    open_registry("other").refresh()
    with pytest.raises(AdapterNotReadyError, match="too long"):
        registry.mark_validating("news", 1)
    with pytest.raises(AdapterNotReadyError, match="too long"):
        complete(registry, 1, 1)
    registry.abandon_version("news", 1)
    assert states(registry) == []


def test_upload_that_was_removed_never_ends_in_the_place_of_another(
    registry: Registry, open_registry: Opener, clock: Clock
) -> None:
    late = registry.begin_version("news", ANNA, lease_s=60.0)
    clock.now_s += 61.0
    other = open_registry("other")
    other.refresh()
    theirs = other.begin_version("news", ANNA, lease_s=60.0)
    mine = registry.begin_version("news", ANNA, lease_s=60.0)
    assert late.version == theirs.version == 1
    assert mine.version == 2
    with pytest.raises(AdapterNotReadyError):
        complete(registry, late.version, 1)
    registry.abandon_version("news", late.version)
    assert complete(other, theirs.version, 2).digest == digest(2)
    assert complete(registry, mine.version, 3).digest == digest(3)
    assert states(registry) == [(1, "ready"), (2, "ready")]


def test_number_of_an_upload_that_was_removed_is_not_taken_by_its_own_server(
    registry: Registry, open_registry: Opener, clock: Clock
) -> None:
    registry.begin_version("news", ANNA, lease_s=60.0)
    clock.now_s += 61.0
    open_registry("other").refresh()
    assert registry.begin_version("news", ANNA, lease_s=60.0).version == 2
    with pytest.raises(AdapterNotReadyError):
        complete(registry, 1, 1)


def test_begun_versions_name_no_live_bytes(registry: Registry) -> None:
    registry.begin_version("news", ANNA, lease_s=60.0)
    assert registry.live_digests() == frozenset()


def test_two_uploads_of_the_same_bytes_at_once_give_one_version(registry: Registry) -> None:
    first, second = (registry.begin_version("news", ANNA, lease_s=60.0) for _ in range(2))
    done = complete(registry, second.version, 1)
    assert complete(registry, first.version, 1) == done
    assert states(registry) == [(2, "ready")]
