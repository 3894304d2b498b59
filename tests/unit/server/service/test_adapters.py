"""Uploads: four gates, and nothing left behind by what does not pass."""

import asyncio
from pathlib import Path

import pytest

from adapters.errors import AdapterError, AdapterNotFoundError, InvalidAdapterError
from server.core.errors import ErrorCode, MedleyError, ResourceExhaustedError, code_of
from tests.fixtures.peft_files import CONFIG, WEIGHTS, Files, for_another_base, lora_files, prompt_files, with_nan
from tests.unit.server.service.conftest import AskFor, MakeRoom, Room


def stored(room: Room) -> list[str]:
    return sorted(path.name for path in (room.data_dir / "store").iterdir())


async def refused(room: Room, files: Files, name: str = "new", alias: str | None = None) -> ErrorCode:
    with pytest.raises((MedleyError, AdapterError)) as caught:
        await room.upload(files, name, alias)
    assert room.nothing_left()
    assert stored(room) == []
    assert await room.catalog.list() == ()
    code = code_of(caught.value)
    assert room.counted("medley_adapter_uploads_total", code=code) == 1
    return code


async def test_upload_is_listed_and_served(room: Room, ask: AskFor) -> None:
    record = await room.upload(prompt_files(num_virtual_tokens=7), "soft", "canary")
    assert (record.name, record.version, record.num_virtual_tokens) == ("soft", 1, 7)
    assert (await room.catalog.get("soft")).aliases == {"canary": 1}
    assert [adapter.name for adapter in await room.catalog.list()] == ["soft"]
    result = await (await room.inference.open(ask(adapters=("soft@canary",)))).result()
    assert result.adapters[0].digest == record.digest
    assert stored(room) == [record.digest]
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="OK") == 1


async def test_upload_in_small_pieces_is_the_same(room: Room) -> None:
    whole = await room.upload(lora_files(), "whole")
    async with room.catalog.stage() as staged:
        for file_name, data in lora_files().items():
            for at in range(0, len(data), 100):
                await staged.write(file_name, data[at : at + 100])
        assert (await room.catalog.commit(staged, "pieces", None)).digest == whole.digest


async def test_same_bytes_under_the_same_name_give_the_same_version(room: Room) -> None:
    first = await room.upload(lora_files(), "lora")
    assert await room.upload(lora_files(), "lora") == first
    assert (await room.upload(lora_files(2), "lora")).version == 2


async def test_uploads_of_one_name_at_once_get_versions_of_their_own(room: Room) -> None:
    records = await asyncio.gather(*(room.upload(lora_files(seed), "lora") for seed in (1, 2, 3, 3)))
    assert sorted({record.version for record in records}) == [1, 2, 3]
    assert len((await room.catalog.get("lora")).versions) == 3


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
    async with room.catalog.stage() as staged:
        await staged.write(WEIGHTS, b"half")
    assert room.nothing_left()
    assert room.counted("medley_adapter_uploads_total", code="CANCELLED") == 1


async def test_cancelled_upload_leaves_nothing(room: Room) -> None:
    async def stalled() -> None:
        async with room.catalog.stage() as staged:
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
    room = await make_room(max_num_uploads=1)
    async with room.catalog.stage():
        with pytest.raises(ResourceExhaustedError):
            async with room.catalog.stage():
                pass
    await room.upload(lora_files(), "lora")


async def test_get_unknown_adapter_is_not_found(room: Room) -> None:
    with pytest.raises(AdapterNotFoundError):
        await room.catalog.get("nobody")


async def test_uploads_beside_running_requests_disturb_none(room: Room, ask: AskFor) -> None:
    async def run(number: int) -> str:
        return (await (await room.inference.open(ask(request_id=f"r{number}"))).result()).text

    answers = asyncio.gather(*(run(number) for number in range(30)))
    await asyncio.gather(*(room.upload(lora_files(seed), f"lora-{seed}") for seed in range(4)))
    assert set(await answers) == {"base: hello there"}


def library(root: Path, **adapters: Files) -> Path:
    for name, files in adapters.items():
        (root / name).mkdir(parents=True)
        for file_name, data in files.items():
            (root / name / file_name).write_bytes(data)
    (root / "not-an-adapter").mkdir(exist_ok=True)
    return root


async def test_library_is_registered_once_and_other_bases_are_left_out(
    room: Room, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shipped = library(
        tmp_path / "library", lora=lora_files(), soft=prompt_files(), foreign=for_another_base(lora_files())
    )
    await room.catalog.register_library(shipped)
    first = await room.catalog.list()
    assert [(each.name, dict(each.aliases)) for each in first] == [("lora", {"stable": 1}), ("soft", {"stable": 1})]
    assert [vars(entry)["adapter"] for entry in caplog.records if "left out" in entry.message] == ["foreign"]
    await room.catalog.register_library(shipped)
    assert await room.catalog.list() == first


async def test_library_does_not_take_an_alias_back_from_the_operator(room: Room, tmp_path: Path) -> None:
    shipped = library(tmp_path / "library", lora=lora_files())
    await room.catalog.register_library(shipped)
    await room.upload(lora_files(2), "lora", "stable")
    await room.catalog.register_library(shipped)
    assert (await room.catalog.get("lora")).aliases == {"stable": 2}


async def test_library_that_is_not_there_is_empty(room: Room, tmp_path: Path) -> None:
    await room.catalog.register_library(tmp_path / "none")
    assert await room.catalog.list() == ()
