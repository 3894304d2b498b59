"""The life of versions and what reads answer, on SQLite and PostgreSQL."""

from dataclasses import FrozenInstanceError, replace

import pytest

from adapters.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    AdapterNotReadyError,
    InvalidAdapterError,
    InvalidAdapterReferenceError,
    PromptTemplateError,
)
from adapters.manifest import AdapterKind
from adapters.registry import AuditRecord, Registry, VersionState
from tests.fixtures.registry import ANNA, MANIFEST, Clock, add_version, digest
from tests.unit.adapters.conftest import Opener


def test_version_goes_from_uploading_to_ready_with_all_its_fields(registry: Registry, clock: Clock) -> None:
    begun = registry.begin_version("news", ANNA, lease_s=60.0)
    assert (begun.version, begun.state, begun.digest, begun.kind) == (1, VersionState.UPLOADING, "", None)
    assert begun.reason == "upload by key:anna"
    assert registry.get("news").versions == (begun,)
    registry.mark_validating("news", 1)
    assert registry.get("news").versions[0].state is VersionState.VALIDATING
    with pytest.raises(AdapterNotReadyError, match="validating"):
        registry.resolve("news")
    record = registry.complete_version(
        "news",
        1,
        digest=digest(1),
        manifest=MANIFEST,
        size_bytes=123,
        alias="stable",
        tags=("short", "de"),
        change=ANNA,
    )
    assert (record.name, record.version, record.digest, record.reason) == ("news", 1, digest(1), "")
    assert (record.kind, record.state, record.rank, record.size_bytes) == (AdapterKind.LORA, VersionState.READY, 4, 123)
    assert (record.task, record.licence, record.description) == ("summarization", "MIT", "Für alle: ROUGE ≥ 31.")
    assert (record.scores, record.prompt_template) == ({"rouge1": 31.5}, "Sum: {{ text }}")
    assert (record.tags, record.created_s) == (("de", "short"), clock.now_s)
    assert registry.resolve("news") == record
    with pytest.raises(FrozenInstanceError):
        record.version = 2  # type: ignore[misc]


def test_resolve_bare_name_prefers_stable_then_newest_ready(registry: Registry) -> None:
    add_version(registry, "news", 1)
    add_version(registry, "news", 2)
    registry.begin_version("news", ANNA, lease_s=60.0)
    assert registry.resolve("news").version == 2
    registry.set_alias("news", "stable", 1, ANNA)
    assert registry.resolve("news").version == 1
    assert registry.resolve("news:2").version == 2
    registry.set_alias("news", "canary", 2, ANNA)
    assert registry.resolve("news@canary").version == 2
    assert registry.get("news").aliases == {"stable": 1, "canary": 2}


@pytest.mark.parametrize("reference", ["other", "news:2", "news@stable", "news@x"])
def test_resolve_unknown_is_not_found(registry: Registry, reference: str) -> None:
    add_version(registry, "news", 1)
    with pytest.raises(AdapterNotFoundError):
        registry.resolve(reference)


def test_same_bytes_twice_give_the_same_version_and_leave_no_other(registry: Registry) -> None:
    first = add_version(registry, "news", 1, tags=("a",))
    add_version(registry, "news", 2)
    again = add_version(registry, "news", 1, "stable", tags=("b",))
    assert again == replace(first, tags=("a", "b"))
    assert registry.get("news").aliases == {"stable": 1}
    assert [version.version for version in registry.get("news").versions] == [1, 2]
    assert registry.audit(limit=1)[0].detail == "these bytes were there"
    assert add_version(registry, "other", 1).version == 1


def test_bytes_of_a_retired_version_become_a_new_one(registry: Registry) -> None:
    add_version(registry, "news", 1)
    registry.retire("news", 1, reason="wrong", change=ANNA, force=False)
    assert add_version(registry, "news", 1).version == 2
    assert registry.resolve("news").version == 2
    assert registry.live_digests() == {digest(1)}


def test_abandon_leaves_nothing_and_is_harmless_twice(registry: Registry, open_registry: Opener) -> None:
    other = open_registry("other")
    begun = registry.begin_version("news", ANNA, lease_s=60.0)
    other.refresh()
    assert [record.name for record in other.list()] == ["news"]
    registry.abandon_version("news", begun.version)
    registry.abandon_version("news", begun.version)
    other.refresh()
    assert registry.list() == other.list() == registry.audit() == ()


def test_abandon_of_a_ready_version_changes_nothing(registry: Registry) -> None:
    record = add_version(registry, "news", 1)
    registry.abandon_version("news", 1)
    assert registry.resolve("news:1") == record


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"alias": "b/c"}, InvalidAdapterReferenceError),
        ({"digest": "A" * 64}, InvalidAdapterReferenceError),
        ({"digest": "../x"}, InvalidAdapterReferenceError),
        ({"tags": ("x y",)}, InvalidAdapterReferenceError),
        ({"manifest": replace(MANIFEST, prompt_template="{{ text.__class__ }}")}, PromptTemplateError),
        ({"manifest": replace(MANIFEST, licence="MIT\0")}, InvalidAdapterError),
        ({"change": replace(ANNA, idempotency_key="ä")}, InvalidAdapterReferenceError),
    ],
)
def test_complete_malformed_is_refused_and_the_upload_stays(
    registry: Registry, change: dict[str, object], error: type[Exception]
) -> None:
    registry.begin_version("news", ANNA, lease_s=60.0)
    sound: dict[str, object] = {
        "digest": digest(1),
        "manifest": MANIFEST,
        "size_bytes": 1,
        "alias": None,
        "tags": (),
        "change": ANNA,
    }
    with pytest.raises(error):
        registry.complete_version("news", 1, **{**sound, **change})  # type: ignore[arg-type]
    assert registry.get("news").versions[0].state is VersionState.UPLOADING


def test_begin_with_malformed_name_is_refused(registry: Registry) -> None:
    for name in ("a/b", "", "A", "a\0"):
        with pytest.raises(InvalidAdapterReferenceError):
            registry.begin_version(name, ANNA, lease_s=60.0)


def test_retire_leaves_a_tombstone_that_nobody_resolves(registry: Registry) -> None:
    add_version(registry, "news", 1)
    add_version(registry, "news", 2)
    record = registry.retire("news", 2, reason="deleted by anna: too long", change=ANNA, force=False)
    assert (record.versions[1].state, record.versions[1].reason) == (VersionState.RETIRED, "deleted by anna: too long")
    assert registry.resolve("news").version == 1
    with pytest.raises(AdapterNotReadyError, match="too long"):
        registry.resolve("news:2")
    with pytest.raises(AdapterNotReadyError):
        registry.set_alias("news", "canary", 2, ANNA)
    assert registry.live_digests() == {digest(1)}


def test_retire_twice_keeps_the_first_reason_and_writes_no_second_row(registry: Registry) -> None:
    add_version(registry, "news", 1)
    first = registry.retire("news", 1, reason="first", change=ANNA, force=False)
    assert registry.retire("news", 1, reason="second", change=ANNA, force=True) == first
    assert [row.action for row in registry.audit()] == ["retire", "upload"]


def test_retire_of_what_an_alias_points_at_needs_force(registry: Registry) -> None:
    add_version(registry, "news", 1, "stable")
    registry.set_alias("news", "canary", 1, ANNA)
    add_version(registry, "news", 2, "next")
    with pytest.raises(AdapterInUseError, match="@canary, @stable points"):
        registry.retire("news", 1, reason="old", change=ANNA, force=False)
    record = registry.retire("news", 1, reason="old", change=ANNA, force=True)
    assert record.aliases == {"next": 2}
    assert registry.audit(limit=1)[0].detail == "old; dropped @canary, @stable"


def test_retire_of_an_unfinished_upload_is_refused(registry: Registry) -> None:
    registry.begin_version("news", ANNA, lease_s=60.0)
    with pytest.raises(AdapterNotReadyError):
        registry.retire("news", 1, reason="", change=ANNA, force=True)


def test_label_changes_what_is_given_only(registry: Registry) -> None:
    before = add_version(registry, "news", 1, tags=("a",))
    tagged = registry.label("news", 1, tags=("c", "b"), description=None, change=ANNA)
    assert tagged == replace(before, tags=("b", "c"))
    described = registry.label("news", 1, tags=None, description="Short.", change=ANNA)
    assert described == registry.resolve("news") == replace(tagged, description="Short.")
    assert registry.label("news", 1, tags=("b", "c"), description="Short.", change=ANNA) == described
    assert [row.detail for row in registry.audit()] == ["description", "tags", ""]
    assert registry.label("news", 1, tags=(), description="", change=ANNA) == replace(before, tags=(), description="")


def test_label_malformed_or_of_an_unready_version_is_refused(registry: Registry) -> None:
    add_version(registry, "news", 1)
    with pytest.raises(InvalidAdapterReferenceError):
        registry.label("news", 1, tags=("A",), description=None, change=ANNA)
    for description in ("\0", "\x1b[2J", "x" * 4097, "\ud800"):
        with pytest.raises(InvalidAdapterError):
            registry.label("news", 1, tags=None, description=description, change=ANNA)
    registry.retire("news", 1, reason="", change=ANNA, force=False)
    with pytest.raises(AdapterNotReadyError):
        registry.label("news", 1, tags=(), description=None, change=ANNA)


@pytest.mark.parametrize("name", ["other", "A B", "a\0", "\ud800"])
def test_change_of_an_unknown_name_is_not_found_whatever_it_looks_like(registry: Registry, name: str) -> None:
    changes = [
        lambda: registry.set_alias(name, "stable", 1, ANNA),
        lambda: registry.delete_alias(name, "stable", ANNA),
        lambda: registry.rollback(name, "stable", ANNA),
        lambda: registry.retire(name, 1, reason="", change=ANNA, force=False),
        lambda: registry.label(name, 1, tags=(), description=None, change=ANNA),
        lambda: registry.get(name),
    ]
    messages = set()
    for change in changes:
        with pytest.raises(AdapterNotFoundError) as caught:
            change()
        messages.add(caught.value.message)
    assert len(messages) == 1


def test_change_of_an_absurd_version_number_is_not_found(registry: Registry) -> None:
    add_version(registry, "news", 1)
    for version in (0, -1, 2, 10**30):
        with pytest.raises(AdapterNotFoundError):
            registry.set_alias("news", "stable", version, ANNA)


def test_list_is_sorted_by_name(registry: Registry) -> None:
    for name in ("b", "c", "a"):
        add_version(registry, name, 1)
    assert [record.name for record in registry.list()] == ["a", "b", "c"]


def test_audit_tells_every_change_newest_first(registry: Registry, clock: Clock) -> None:
    add_version(registry, "news", 1, "stable")
    add_version(registry, "news", 2)
    registry.set_alias("news", "stable", 2, ANNA)
    registry.rollback("news", "stable", ANNA)
    registry.delete_alias("news", "stable", ANNA)
    clock.now_s += 5.0
    registry.retire("news", 2, reason="old", change=ANNA, force=False)
    rows = registry.audit()
    assert [(row.action, row.version, row.alias) for row in reversed(rows)] == [
        ("upload", 1, "stable"),
        ("upload", 2, ""),
        ("set_alias", 2, "stable"),
        ("rollback", 1, "stable"),
        ("delete_alias", 1, "stable"),
        ("retire", 2, ""),
    ]
    assert rows[0] == AuditRecord(
        clock.now_s, "key:anna", "192.0.2.1", "retire", "news", 2, digest=digest(2), detail="old"
    )


def test_audit_is_limited_and_filtered_by_name_and_by_who_may_see(registry: Registry) -> None:
    for number in range(3):
        add_version(registry, "news", number)
        add_version(registry, "mail", number)
    assert [row.version for row in registry.audit(name="news", limit=2)] == [3, 2]
    assert {row.name for row in registry.audit(visible=lambda name: name == "mail")} == {"mail"}
    assert len(registry.audit(visible=lambda name: name == "mail", limit=2)) == 2
    assert registry.audit(name="other") == registry.audit(limit=0) == registry.audit(limit=-1) == ()
    assert registry.audit(name="a\0") == registry.audit(name="\ud800") == ()
