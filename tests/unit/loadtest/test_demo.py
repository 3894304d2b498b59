"""The demo's scenario against the fake server, and its tables."""

import asyncio
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from loadtest.clients import WireProtocol
from loadtest.clients.base import ClientError
from loadtest.demo.scenario import WAYS, DemoResult, Scenario, Way
from loadtest.demo.tables import render_dialogue, render_failures, render_many, render_one
from loadtest.examples import Example

EXAMPLES = [Example(str(number), f"dialogue {number}", ("a cat",), ("cats",)) for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    return tmp_path


async def _run(server, folder: Path, examples: list[Example]) -> DemoResult:
    addresses = {protocol: server.address(protocol) for protocol in WireProtocol}
    return await Scenario(addresses, folder, max_dialogues_at_once=2).run(examples)


def _text(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=150)
    console.print(renderable)
    return console.file.getvalue()


async def test_demo_asks_every_way_over_both_protocols_at_once(server, folder: Path) -> None:
    server.ttft_s = 0.3
    result = await _run(server, folder, EXAMPLES[:1])
    asked = {(served.way.label, served.protocol) for served in result.served}
    assert asked == {(way.label, protocol) for way in WAYS for protocol in WireProtocol}
    assert result.failures == ()
    # Ten answers of at least 0.33 s, then uploads and two more: one after the other would take four seconds.
    assert result.took_s < 2.0
    for served in result.all_served:
        assert served.answer is not None
        assert served.answer.summary == "The cat sat down."
        assert 290.0 < served.ttft_ms < served.e2e_ms
    assert {served.scores["rouge1"] for served in result.served} == {42.0}


async def test_demo_uploads_while_others_run_and_uses_it(server, folder: Path) -> None:
    result = await _run(server, folder, EXAMPLES[:1])
    # Both are sent at once, so either may arrive first; the result has an order of its own.
    assert sorted(name for name, _, _ in server.uploads) == ["uploaded-over-grpc", "uploaded-over-http"]
    assert [upload.version.name for upload in result.uploads] == ["uploaded-over-http", "uploaded-over-grpc"]
    for upload in result.uploads:
        assert upload.num_in_flight > 0
        assert upload.served.answer is not None
        assert upload.served.answer.adapters == (f"{upload.version.name}:1",)


async def test_demo_failure_is_in_the_result_and_spares_others(server, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("loadtest.demo.scenario.WAYS", (Way(()), Way(("missing",))))
    result = await _run(server, folder, EXAMPLES)
    assert len(result.failures) == 6
    assert {served.way.label for served in result.failures} == {"missing"}
    text = _text(render_failures(result.failures))
    assert "NOT_FOUND" in text
    assert all(served.answer for served in result.served if served.way.label == "base")


async def test_demo_everything_failing_ends_all_the_same(server, folder: Path) -> None:
    server.fails_half_way = True
    result = await _run(server, folder, EXAMPLES[:1])
    assert len(result.failures) == len(result.all_served) == 12


async def test_demo_without_any_text_does_not_wait_for_it(server, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("loadtest.demo.scenario.WAYS", (Way(("missing",)),))
    async with asyncio.timeout(10.0):
        result = await _run(server, folder, EXAMPLES[:1])
    assert len(result.failures) == 2
    assert len(result.uploads) == 2


async def test_demo_upload_refused_raises(server, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="no adapter files"):
        await _run(server, tmp_path / "absent", EXAMPLES[:1])


async def test_demo_answer_by_other_adapters_is_a_failure(server, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("loadtest.demo.scenario.WAYS", (Way(("a",)),))
    server.serves_base_only = True
    result = await _run(server, folder, EXAMPLES[:1])
    assert "WRONG_ADAPTERS" in result.failures[0].error


async def test_demo_scores_that_were_late_are_asked_for(server, folder: Path) -> None:
    server.scores_late = True
    result = await _run(server, folder, EXAMPLES[:1])
    assert {served.scores["rouge1"] for served in result.served} == {50.0}


async def test_tables_show_every_way(server, folder: Path) -> None:
    one = await _run(server, folder, EXAMPLES[:1])
    text = _text(render_dialogue(EXAMPLES[0])) + _text(render_one(one))
    for expected in ("dialogue 0", "topic: cats", "The cat sat down.", "ROUGE-L", "42.0", "uploaded-over-grpc:1"):
        assert expected in text
    text = _text(render_many(await _run(server, folder, EXAMPLES)))
    for way in WAYS:
        assert way.label in text
    assert "e2e p99" in text
