"""Adapters from folders: those that ship with the server, and those it is told to fetch."""

from pathlib import Path

import pytest

from adapters.errors import (
    SourceError,
    SourceNotAllowedError,
)
from adapters.registry import VersionState
from server.service.adapters import CatalogConfig
from tests.fixtures.peft_files import Files, for_another_base, lora_files, prompt_files
from tests.unit.server.service.conftest import ANYONE, MakeRoom, Room


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
    await room.uploads.register_library(shipped)
    first = await room.catalog.list(ANYONE)
    assert [(each.name, dict(each.aliases)) for each in first] == [("lora", {"stable": 1}), ("soft", {"stable": 1})]
    assert [vars(entry)["adapter"] for entry in caplog.records if "left out" in entry.message] == ["foreign"]
    await room.uploads.register_library(shipped)
    assert await room.catalog.list(ANYONE) == first


async def test_library_does_not_take_an_alias_back_from_the_operator(room: Room, tmp_path: Path) -> None:
    shipped = library(tmp_path / "library", lora=lora_files())
    await room.uploads.register_library(shipped)
    await room.upload(lora_files(2), "lora", "stable")
    await room.uploads.register_library(shipped)
    assert (await room.catalog.get(ANYONE, "lora")).aliases == {"stable": 2}


async def test_library_that_is_not_there_is_empty(room: Room, tmp_path: Path) -> None:
    await room.uploads.register_library(tmp_path / "none")
    assert await room.catalog.list(ANYONE) == ()


async def test_library_does_not_bring_back_what_was_deleted(room: Room, tmp_path: Path) -> None:
    shipped = library(tmp_path / "library", lora=lora_files())
    await room.uploads.register_library(shipped)
    await room.catalog.delete(ANYONE, "lora", 1, force=True)
    await room.uploads.register_library(shipped)
    assert [version.state for version in (await room.catalog.get(ANYONE, "lora")).versions] == [VersionState.RETIRED]


async def test_source_is_fetched_where_it_is_allowed_and_nowhere_else(make_room: MakeRoom, tmp_path: Path) -> None:
    shared = library(tmp_path / "shared", lora=lora_files())
    room = await make_room(catalog=CatalogConfig(allowed_sources=(f"file://{shared}/",)))
    record = await room.uploads.from_source(ANYONE, "lora", f"file://{shared}/lora", alias="stable", tags=("b", "a"))
    assert (record.version, record.tags) == (1, ("a", "b"))
    for source, error in ((f"file://{tmp_path}/other", SourceNotAllowedError), (f"file://{shared}/none", SourceError)):
        with pytest.raises(error):
            await room.uploads.from_source(ANYONE, "lora", source)
    assert room.nothing_left()
