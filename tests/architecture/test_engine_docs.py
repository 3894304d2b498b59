"""The page of the engines says of each what it serves and honours, and its example of a settings file can be read."""

import re
from collections.abc import Set
from pathlib import Path

import pytest

from adapters.manifest import AdapterKind
from server.engine.base import EngineInfo, Feature
from server.engine.vllm import capabilities
from server.settings import DEFAULT_MODEL, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text("utf-8")


def said_of(engine: str) -> dict[str, bool]:
    """What the table of capabilities says of an engine, by kind or parameters."""
    table = PAGE.split("## What each can do\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    column = lines[0].index(f"`{engine}`")
    rows = {row[0].replace("`", ""): re.split(r"\W", row[column])[0] for row in lines if row[0].startswith("`")}
    assert set(rows.values()) <= {"yes", "no"}
    return {name: answer == "yes" for name, answer in rows.items()}


def what_is(kinds: Set[AdapterKind], features: Set[Feature]) -> dict[str, bool]:
    return {kind.value: kind in kinds for kind in AdapterKind} | {each.value: each in features for each in Feature}


def test_page_says_what_the_vllm_engine_can_do() -> None:
    assert said_of(capabilities.NAME) == what_is(capabilities.KINDS, capabilities.FEATURES)


@pytest.mark.torch
async def test_page_says_what_the_native_engine_can_do() -> None:
    info = await info_of_the_native_engine()
    assert said_of(info.name) == what_is(info.kinds, info.features)


async def info_of_the_native_engine() -> EngineInfo:
    from server.engine.native.config import NativeEngineConfig
    from server.engine.native.engine import NativeEngine

    engine = NativeEngine(NativeEngineConfig(str(DEFAULT_MODEL)))
    await engine.start()
    try:
        return engine.info
    finally:
        await engine.stop()


def test_pages_example_of_a_settings_file_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "medley.toml"
    file.write_text(example)
    engine = load_settings(file).engine
    assert (engine.name, engine.max_lora_rank, engine.vllm["tensor_parallel_size"]) == ("auto", 32, 4)
