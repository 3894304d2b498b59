"""The catalog: aliases, deletion while requests run, labels, audit; and names that do not exist for a caller."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from adapters.errors import AdapterError, AdapterInUseError, AdapterNotFoundError, AdapterNotReadyError, RollbackError
from adapters.registry import Registry, VersionState
from server.core.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from server.core.principal import Principal, Scope
from server.engine.fake import FakeEngineConfig
from server.service.adapters import CatalogConfig
from server.service.directory import lease_word
from server.service.models import ModelDirectory
from tests.fixtures.peft_files import lora_files
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room

SLOW = FakeEngineConfig(step_time_s=0.01)
ALICE = Principal("key:alice", frozenset({Scope.ADMIN}), ("alice-*", "shared"), "10.0.0.1")
BOB = Principal("key:bob", frozenset({Scope.ADMIN}), ("bob-*", "shared"), "10.0.0.2")


async def test_get_unknown_adapter_is_not_found(room: Room) -> None:
    with pytest.raises(AdapterNotFoundError):
        await room.catalog.get(ANYONE, "nobody")


async def test_alias_moves_and_rolls_back(room: Room) -> None:
    await room.upload(lora_files(1), "lora", "stable")
    await room.upload(lora_files(2), "lora")
    assert (await room.catalog.set_alias(ANYONE, "lora", "stable", 2)).aliases == {"stable": 2}
    assert (await room.catalog.rollback(ANYONE, "lora", "stable")).aliases == {"stable": 1}
    with pytest.raises(RollbackError):
        await room.catalog.rollback(ANYONE, "lora", "stable")
    assert (await room.catalog.delete_alias(ANYONE, "lora", "stable")).aliases == {}


async def test_list_finds_by_tag(room: Room) -> None:
    await room.upload(lora_files(1), "one")
    await room.upload(lora_files(2), "two")
    labelled = await room.catalog.label(ANYONE, "two", 1, tags=("good",), description="better")
    assert (labelled.tags, labelled.description) == (("good",), "better")
    assert [record.name for record in await room.catalog.list(ANYONE, tag="good")] == ["two"]


async def test_card_is_what_its_maker_wrote(room: Room) -> None:
    await room.upload({**lora_files(1), "README.md": b"# Read me"}, "lora")
    await room.upload({**lora_files(1), "README.md": b"# Read me", "card.md": b"# Card"}, "lora")
    await room.upload(lora_files(3), "lora")
    assert [await room.catalog.card(ANYONE, "lora", version) for version in (1, 2, 3)] == ["# Read me", "# Card", ""]
    await room.catalog.delete(ANYONE, "lora", 1)
    with pytest.raises(AdapterNotReadyError):
        await room.catalog.card(ANYONE, "lora", 1)


async def test_delete_is_refused_while_an_alias_points_or_a_request_runs(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    await room.upload(lora_files(), "lora", "stable")
    with pytest.raises(AdapterInUseError):
        await room.catalog.delete(ANYONE, "lora", 1)
    await room.catalog.delete_alias(ANYONE, "lora", "stable")
    generation = await room.open(ask(adapters=("lora",)))
    with pytest.raises(AdapterInUseError, match="requests run"):
        await room.catalog.delete(ANYONE, "lora", 1)
    await generation.result()
    record = await room.catalog.delete(ANYONE, "lora", 1)
    assert (record.versions[0].state, record.versions[0].reason) == (VersionState.RETIRED, "deleted by anonymous")


async def test_delete_is_refused_while_a_request_runs_on_another_server(room: Room) -> None:
    await room.upload(lora_files(), "lora")
    other = Registry(f"sqlite:///{room.data_dir / 'registry.db'}")
    try:
        other.publish_leases(frozenset({lease_word("lora", 1)}), ttl_s=60)
        with pytest.raises(AdapterInUseError, match="requests run"):
            await room.catalog.delete(ANYONE, "lora", 1)
        other.publish_leases(frozenset(), ttl_s=60)
    finally:
        other.close()
    await room.catalog.delete(ANYONE, "lora", 1)


async def test_same_bytes_in_use_under_another_name_do_not_keep_a_version(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    for name in ("alice-lora", "bob-lora"):
        await room.upload(lora_files(), name)
    generation = await room.open(ask(adapters=("alice-lora",)), ALICE)
    await room.catalog.delete(BOB, "bob-lora", 1)
    assert (await generation.result()).adapters[0].name == "alice-lora"


async def test_forced_delete_refuses_new_requests_and_waits_for_running_ones(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    await room.upload(lora_files(), "lora", "stable")
    running = await room.open(ask("x" * 100, adapters=("lora",)))
    deleting = asyncio.create_task(room.catalog.delete(ANYONE, "lora", 1, force=True))
    while (await room.catalog.get(ANYONE, "lora")).aliases:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.005)
    with pytest.raises(AdapterNotReadyError):
        await room.open(ask(request_id="new", adapters=("lora",)))
    assert not deleting.done()
    assert (await running.result()).adapters[0].version == 1
    await asyncio.wait_for(deleting, 10)


async def test_forced_delete_waits_no_longer_than_it_may(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW, catalog=CatalogConfig(drain_s=0.05))
    await room.upload(lora_files(), "lora", "stable")
    running = await room.open(ask("x" * 50, adapters=("lora",)))
    record = await room.catalog.delete(ANYONE, "lora", 1, force=True)
    assert (record.versions[0].state, room.directory.num_leases("lora", 1)) == (VersionState.RETIRED, 1)
    await running.result()


async def test_audit_says_who_what_and_from_where(room: Room) -> None:
    await room.upload(lora_files(), "alice-lora", "stable", ALICE)
    await room.upload(lora_files(), "bob-lora", None, BOB)
    [upload] = await room.catalog.audit(ALICE, None, 10)
    assert (upload.who, upload.origin, upload.action, upload.name) == ("key:alice", "10.0.0.1", "upload", "alice-lora")
    assert len(await room.catalog.audit(ANYONE)) == 2
    assert await room.catalog.audit(BOB, "bob-lora") != ()
    with pytest.raises(AdapterNotFoundError):
        await room.catalog.audit(ANYONE, "nobody")
    for limit in (0, 1001):
        with pytest.raises(InvalidArgumentError):
            await room.catalog.audit(ANYONE, None, limit)


def probes(room: Room, ask: AskFor, name: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every way BOB may ask for an adapter."""
    catalog = room.catalog
    return {
        "get": lambda: catalog.get(BOB, name),
        "version": lambda: catalog.version(BOB, name, 1),
        "card": lambda: catalog.card(BOB, name, 1),
        "set_alias": lambda: catalog.set_alias(BOB, name, "stable", 1),
        "delete_alias": lambda: catalog.delete_alias(BOB, name, "stable"),
        "rollback": lambda: catalog.rollback(BOB, name, "stable"),
        "delete": lambda: catalog.delete(BOB, name, 1, force=True),
        "delete_gently": lambda: catalog.delete(BOB, name, 1),
        "label": lambda: catalog.label(BOB, name, 1, tags=(), description=None),
        "audit": lambda: catalog.audit(BOB, name),
        "infer": lambda: room.open(ask(adapters=(name,)), BOB),
        "infer_version": lambda: room.open(ask(adapters=(f"{name}:1",)), BOB),
        "infer_alias": lambda: room.open(ask(adapters=(f"{name}@stable",)), BOB),
    }


async def test_foreign_adapter_is_answered_as_one_that_does_not_exist(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "alice-lora", "stable", ALICE)
    own = probes(room, ask, "bob-nothing")
    for what, probe in probes(room, ask, "alice-lora").items():
        with pytest.raises(AdapterNotFoundError) as foreign:
            await probe()
        with pytest.raises(AdapterNotFoundError) as unknown:
            await own[what]()
        assert foreign.value.message == unknown.value.message.replace("bob-nothing", "alice-lora"), what
    assert await room.catalog.list(BOB) == ()
    assert [model.model_id for model in await ModelDirectory("fake", room.catalog, 1024).list_models(BOB)] == ["fake"]
    assert (await room.catalog.get(ALICE, "alice-lora")).aliases == {"stable": 1}


@pytest.mark.parametrize("exists", [True, False])
async def test_upload_to_a_foreign_name_is_refused_whether_it_exists_or_not(room: Room, exists: bool) -> None:
    if exists:
        await room.upload(lora_files(), "alice-lora", None, ALICE)
    with pytest.raises(PermissionDeniedError, match=r"^this key is not for adapters of this name$"):
        await room.upload(lora_files(), "alice-lora", None, BOB)


async def test_references_and_evaluations_are_the_callers_own(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "alice-lora", None, ALICE)
    await room.upload(lora_files(), "shared", None, ALICE)
    for name in ("alice-lora", "shared"):
        await (await room.open(ask(request_id=name, adapters=(name,)), ALICE)).result()
        await room.feedback.submit(ALICE, name, ["a reference"])
        with pytest.raises(NotFoundError):
            await room.feedback.submit(BOB, name, ["a reference"])
    await (await room.open(ask(references=("x",)), ALICE)).result()
    assert [entry.adapters for entry in await room.feedback.evaluations(BOB)] == ["base", "shared:1"]
    assert [entry.adapters for entry in await room.feedback.evaluations(ALICE)] == ["alice-lora:1", "base", "shared:1"]


async def test_key_of_a_change_gives_the_first_answer_again(room: Room) -> None:
    for seed in (1, 2):
        await room.upload(lora_files(seed), "lora")
    first = await room.catalog.set_alias(ANYONE, "lora", "stable", 1, "once")
    await room.catalog.set_alias(ANYONE, "lora", "stable", 2)
    assert await room.catalog.set_alias(ANYONE, "lora", "stable", 1, "once") == first
    assert (await room.catalog.get(ANYONE, "lora")).aliases == {"stable": 2}
    with pytest.raises(AdapterError):
        await room.catalog.set_alias(ANYONE, "lora", "stable", 2, "once")
