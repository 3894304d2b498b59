"""Uploads: four gates, and nothing left behind by what does not pass, goes away or takes too long."""

import asyncio
import io
import tarfile
import threading
import time
from typing import Any

import pytest

from adapters.errors import (
    AdapterError,
    AdapterTooLargeError,
    IdempotencyConflictError,
    InvalidAdapterError,
    StoreError,
)
from adapters.registry import VersionRecord, VersionState
from server.core.errors import DeadlineExceededError, ErrorCode, MedleyError, ResourceExhaustedError, code_of
from server.service import uploads
from server.service.adapters import CatalogConfig
from tests.fixtures.peft_files import CONFIG, WEIGHTS, Files, for_another_base, lora_files, prompt_files, with_nan
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room


def stored(room: Room) -> list[str]:
    return sorted(path.name for path in (room.data_dir / "store").iterdir() if not path.name.startswith("."))


async def refused(room: Room, files: Files, name: str = "new", alias: str | None = None) -> ErrorCode:
    with pytest.raises((MedleyError, AdapterError)) as caught:
        await room.upload(files, name, alias)
    assert room.nothing_left()
    assert stored(room) == []
    assert await room.catalog.list(ANYONE) == ()
    code = code_of(caught.value)
    assert room.counted("medley_adapter_uploads_total", code=code) == 1
    return code


async def test_upload_is_listed_and_served(room: Room, ask: AskFor) -> None:
    record = await room.upload(prompt_files(num_virtual_tokens=7), "soft", "canary")
    assert (record.name, record.version, record.num_virtual_tokens) == ("soft", 1, 7)
    assert (await room.catalog.get(ANYONE, "soft")).aliases == {"canary": 1}
    assert [adapter.name for adapter in await room.catalog.list(ANYONE)] == ["soft"]
    result = await (await room.open(ask(adapters=("soft@canary",)))).result()
    assert result.adapters[0].digest == record.digest
    assert stored(room) == [record.digest]
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="OK") == 1


async def test_upload_whose_bytes_a_sweep_took_before_they_had_a_name_is_served(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = room.registry.complete_version

    def sweep_and_complete(*arguments: Any, **named: Any) -> VersionRecord:
        assert room.store.sweep(room.registry.live_digests, older_than_s=-5) != ()
        return complete(*arguments, **named)

    monkeypatch.setattr(room.registry, "complete_version", sweep_and_complete)
    record = await room.upload(lora_files(), "lora")
    assert stored(room) == [record.digest]
    assert (await (await room.open(ask(adapters=("lora",)))).result()).adapters[0].digest == record.digest


async def test_upload_in_small_pieces_is_the_same(room: Room) -> None:
    whole = await room.upload(lora_files(), "whole")
    async with room.uploads.stage(ANYONE, "pieces") as staged:
        for file_name, data in lora_files().items():
            for at in range(0, len(data), 100):
                await staged.write(file_name, data[at : at + 100])
        assert (await room.uploads.commit(staged)).digest == whole.digest


async def test_same_bytes_under_the_same_name_give_the_same_version(room: Room) -> None:
    first = await room.upload(lora_files(), "lora")
    assert await room.upload(lora_files(), "lora") == first
    assert (await room.upload(lora_files(2), "lora")).version == 2


async def test_uploads_of_one_name_at_once_get_versions_of_their_own(room: Room) -> None:
    records = await asyncio.gather(*(room.upload(lora_files(seed), "lora") for seed in (1, 2, 3, 3)))
    assert len({record.version for record in records}) == 3
    assert records[2] == records[3]
    assert len((await room.catalog.get(ANYONE, "lora")).versions) == 3


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (for_another_base(lora_files()), ErrorCode.FAILED_PRECONDITION),
        (with_nan(lora_files()), ErrorCode.INVALID_ARGUMENT),
        (with_nan(prompt_files()), ErrorCode.INVALID_ARGUMENT),
        ({**lora_files(), WEIGHTS: b"\x80\x04pickled"}, ErrorCode.INVALID_ARGUMENT),
        ({**lora_files(), WEIGHTS: lora_files()[WEIGHTS][:-50]}, ErrorCode.INVALID_ARGUMENT),
        ({CONFIG: lora_files()[CONFIG]}, ErrorCode.INVALID_ARGUMENT),
        ({**lora_files(), "adapter_model.bin": b"x"}, ErrorCode.FAILED_PRECONDITION),
        ({**lora_files(), "../../escape": b"x"}, ErrorCode.INVALID_ARGUMENT),
        ({**lora_files(), WEIGHTS: b"x" * 70_000}, ErrorCode.RESOURCE_EXHAUSTED),
        ({**lora_files(), "card.md": b"x" * 300_000}, ErrorCode.RESOURCE_EXHAUSTED),
        (lora_files(rank=17), ErrorCode.RESOURCE_EXHAUSTED),
        ({**lora_files(), "medley.json": b'{"name": "x", "kind": "lora", "prompt_template": "{{ 7 }}"}'},
         ErrorCode.INVALID_ARGUMENT),
        ({**lora_files(), "medley.json": b'{"name": "x", "kind": "lora", "metrics": ["rouge", "rogue"]}'},
         ErrorCode.INVALID_ARGUMENT),
        ({}, ErrorCode.INVALID_ARGUMENT),
    ],
)  # fmt: skip
async def test_upload_that_fails_a_gate_leaves_nothing(room: Room, files: Files, code: ErrorCode) -> None:
    assert await refused(room, files) is code


@pytest.mark.parametrize(
    ("name", "alias"), [("", None), ("Bad Name", None), ("a/b", None), ("fake", None), ("a", "B!")]
)
async def test_upload_under_a_bad_name_leaves_nothing(room: Room, name: str, alias: str | None) -> None:
    assert await refused(room, lora_files(), name, alias) is ErrorCode.INVALID_ARGUMENT


async def test_upload_the_engine_refuses_leaves_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_finite(_adapter: object) -> None:
        raise InvalidAdapterError("its logits are not finite")

    monkeypatch.setattr(room.engine, "check_adapter", not_finite)
    assert await refused(room, lora_files()) is ErrorCode.INVALID_ARGUMENT


async def test_half_finished_upload_leaves_nothing(room: Room) -> None:
    async with room.uploads.stage(ANYONE, "lora") as staged:
        await staged.write(WEIGHTS, b"half")
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="CANCELLED") == 1


async def test_cancelled_upload_leaves_nothing(room: Room) -> None:
    async def stalled() -> None:
        async with room.uploads.stage(ANYONE, "lora") as staged:
            await staged.write(WEIGHTS, b"half")
            await asyncio.sleep(60)

    upload = asyncio.create_task(stalled())
    await asyncio.sleep(0.05)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="CANCELLED") == 1


async def test_uploads_at_once_are_bounded_and_recover(make_room: MakeRoom) -> None:
    room = await make_room(catalog=CatalogConfig(max_num_uploads=1))
    async with room.uploads.stage(ANYONE, "lora"):
        with pytest.raises(ResourceExhaustedError):
            async with room.uploads.stage(ANYONE, "lora"):
                pass
    await room.upload(lora_files(), "lora")


async def test_uploads_beside_running_requests_disturb_none(room: Room, ask: AskFor) -> None:
    async def run(number: int) -> str:
        return (await (await room.open(ask(request_id=f"r{number}"))).result()).text

    answers = asyncio.gather(*(run(number) for number in range(30)))
    await asyncio.gather(*(room.upload(lora_files(seed), f"lora-{seed}") for seed in range(4)))
    assert set(await answers) == {"base: hello there"}


def packed(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"adapter/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


async def upload_archive(room: Room, data: bytes, at_once: int = 1000) -> VersionRecord:
    async with room.uploads.stage(ANYONE, "lora") as staged:
        for at in range(0, len(data), at_once):
            await staged.write_archive(data[at : at + at_once])
        return await room.uploads.commit(staged)


async def test_archive_gives_the_same_bytes_as_its_files(room: Room) -> None:
    whole = await room.upload(lora_files(), "whole")
    assert (await upload_archive(room, packed(lora_files()))).digest == whole.digest
    assert room.nothing_left()


@pytest.mark.parametrize("data", [b"no archive at all", packed(lora_files())[:-300], packed({"evil.pkl": b"x"})])
async def test_archive_that_is_not_sound_leaves_nothing(room: Room, data: bytes) -> None:
    with pytest.raises(InvalidAdapterError):
        await upload_archive(room, data)
    assert room.nothing_left()
    assert stored(room) == []


async def test_archive_over_the_limit_is_refused_while_it_arrives(room: Room) -> None:
    with pytest.raises(AdapterTooLargeError):
        await upload_archive(room, bytes(6 << 20), at_once=1 << 20)
    assert room.nothing_left()


@pytest.mark.parametrize("archive_first", [True, False])
async def test_files_beside_an_archive_are_refused(room: Room, archive_first: bool) -> None:
    async def both() -> None:
        async with room.uploads.stage(ANYONE, "lora") as staged:
            for is_archive in (archive_first, not archive_first):
                await (staged.write_archive(b"x") if is_archive else staged.write(CONFIG, b"x"))

    with pytest.raises(InvalidAdapterError, match="not both"):
        await both()
    assert room.nothing_left()


async def test_upload_that_takes_too_long_ends_with_its_deadline(make_room: MakeRoom) -> None:
    room = await make_room(catalog=CatalogConfig(upload_lease_s=0.1))

    async def endless() -> None:
        async with room.uploads.stage(ANYONE, "lora") as staged:
            await staged.write(WEIGHTS, b"half")
            await asyncio.sleep(10)

    with pytest.raises(DeadlineExceededError):
        await endless()
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="DEADLINE_EXCEEDED") == 1


async def test_upload_that_is_being_registered_at_its_deadline_counts(
    make_room: MakeRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(catalog=CatalogConfig(upload_lease_s=3.0))
    complete = room.registry.complete_version

    def slow(*args: object, **options: object) -> VersionRecord:
        time.sleep(3.2)
        return complete(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(room.registry, "complete_version", slow)
    assert (await room.upload(lora_files(), "lora")).state is VersionState.READY
    assert room.nothing_left()


async def test_time_out_of_a_caller_is_not_taken_for_the_uploads_own(room: Room) -> None:
    with pytest.raises(TimeoutError):
        async with room.uploads.stage(ANYONE, "lora"):
            raise TimeoutError
    assert room.nothing_left()


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05])
async def test_upload_cancelled_at_any_moment_is_whole_or_leaves_nothing(room: Room, after_s: float) -> None:
    upload = asyncio.create_task(room.upload(lora_files(), "lora", "stable"))
    await asyncio.sleep(after_s)
    upload.cancel()
    await asyncio.wait({upload})
    assert room.nothing_left()
    records = await room.catalog.list(ANYONE)
    assert [(len(each.versions), dict(each.aliases)) for each in records] in ([], [(1, {"stable": 1})])
    assert records or upload.cancelled()


async def test_caller_who_goes_away_while_it_is_registered_leaves_a_whole_version(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate, complete = threading.Event(), threading.Event(), room.registry.complete_version

    def gated(*args: object, **options: object) -> VersionRecord:
        entered.set()
        assert gate.wait(10)
        return complete(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(room.registry, "complete_version", gated)
    upload = asyncio.create_task(room.upload(lora_files(), "lora"))
    await asyncio.to_thread(entered.wait, 10)
    upload.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert (await room.catalog.version(ANYONE, "lora", 1)).state is VersionState.READY
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="CANCELLED") == 1


async def test_folder_is_removed_only_when_nothing_works_on_it(room: Room) -> None:
    entered, gate = threading.Event(), threading.Event()

    async def working() -> None:
        async with room.uploads.stage(ANYONE, "lora") as staged:

            def work() -> None:
                entered.set()
                assert gate.wait(10)
                (staged.folder / "late").write_text("written after the caller was gone")

            await staged.run(work)

    upload = asyncio.create_task(working())
    await asyncio.to_thread(entered.wait, 10)
    upload.cancel()
    await asyncio.sleep(0.05)
    assert len(list((room.data_dir / "staging").iterdir())) == 1
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert room.nothing_left()


async def test_same_key_gives_the_first_answer_and_another_use_of_it_is_refused(room: Room) -> None:
    async def upload(seed: int) -> VersionRecord:
        async with room.uploads.stage(ANYONE, "lora") as staged:
            for name, data in lora_files(seed).items():
                await staged.write(name, data)
            return await room.uploads.commit(staged, alias="stable", tags=("a",), idempotency_key="once")

    first = await upload(1)
    await room.upload(lora_files(2), "lora", "stable")
    assert await upload(1) == first
    assert (await room.catalog.get(ANYONE, "lora")).aliases == {"stable": 2}
    with pytest.raises(IdempotencyConflictError):
        await upload(3)
    assert room.nothing_left()
    assert len((await room.catalog.get(ANYONE, "lora")).versions) == 2


async def test_upload_without_a_database_is_refused_and_the_slot_is_free_again(
    make_room: MakeRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(catalog=CatalogConfig(max_num_uploads=1))

    def down(*_args: object, **_options: object) -> VersionRecord:
        raise StoreError("the database cannot be used")

    with monkeypatch.context() as outage:
        outage.setattr(room.registry, "begin_version", down)
        for _ in range(2):
            with pytest.raises(StoreError):
                await room.upload(lora_files(), "lora")
    await room.upload(lora_files(), "lora")
    assert room.nothing_left()


async def test_upload_is_forgotten_when_the_database_is_back(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    abandon, num_calls = room.registry.abandon_version, 0

    def down_at_first(name: str, version: int) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise StoreError("the database cannot be used")
        abandon(name, version)

    monkeypatch.setattr(room.registry, "abandon_version", down_at_first)
    monkeypatch.setattr(uploads, "_RETRY_S", 0.02)
    with pytest.raises(InvalidAdapterError):
        await room.upload({}, "lora")
    assert num_calls == 2
    assert room.nothing_left()
