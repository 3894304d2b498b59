"""Both clients against the fake server: one behaviour, two protocols."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, MedleyClient, SummaryRequest

pytestmark = pytest.mark.parametrize("protocol", list(WireProtocol))


@pytest.fixture
async def client(server, protocol: WireProtocol):
    async with create_client(protocol, server.address(protocol)) as opened:
        yield opened


async def test_summarize_gives_the_whole_answer(client: MedleyClient) -> None:
    answer = await client.summarize(SummaryRequest("x", ("a", "b"), references=("y",)), 5.0)
    assert answer.summary == "The cat sat down."
    assert answer.adapters == ("a:1", "b:1")
    assert (answer.finish_reason, answer.num_prompt_tokens, answer.num_output_tokens) == ("stop", 7, 4)
    assert answer.timings.ttft_ms == 30.0
    assert answer.scores["rougeLsum"] == 42.0


async def test_stream_gives_pieces_and_one_answer_at_the_end(client: MedleyClient) -> None:
    pieces = [piece async for piece in client.stream(SummaryRequest("x", ("a",)), 5.0)]
    assert [piece.delta for piece in pieces if piece.delta] == ["The ", "cat ", "sat ", "down."]
    assert [piece.answer is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].answer == await client.summarize(SummaryRequest("x", ("a",)), 5.0)


async def test_refused_request_has_the_servers_code(client: MedleyClient) -> None:
    for call in (client.summarize, _drain(client)):
        with pytest.raises(ClientError, match="no adapter named missing") as caught:
            await call(SummaryRequest("x", ("missing",)), 5.0)
        assert caught.value.code == "NOT_FOUND"


async def test_stream_broken_half_way_raises_after_its_pieces(client: MedleyClient, server) -> None:
    server.fails_half_way = True
    deltas: list[str] = []
    with pytest.raises(ClientError, match="engine broke") as caught:
        await _drain(client, deltas)(SummaryRequest("x"), 5.0)
    assert caught.value.code == "INTERNAL"
    assert "The " in deltas


async def test_time_limit_passed_is_an_error(client: MedleyClient, server, protocol: WireProtocol) -> None:
    server.ttft_s = 2.0
    for call in (client.summarize, _drain(client)):
        with pytest.raises(ClientError) as caught:
            await call(SummaryRequest("x"), 0.1)
        assert caught.value.code == ("TIMEOUT" if protocol is WireProtocol.HTTP else "DEADLINE_EXCEEDED")


async def test_stream_closed_early_lets_others_go_on(client: MedleyClient) -> None:
    async with aclosing(client.stream(SummaryRequest("x"), 5.0)) as pieces:
        await anext(pieces)
    assert (await client.summarize(SummaryRequest("x"), 5.0)).finish_reason == "stop"


async def test_server_unreachable_is_an_error(protocol: WireProtocol, unused_tcp_port: int) -> None:
    async with create_client(protocol, f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ClientError) as caught:
            await client.summarize(SummaryRequest("x"), 5.0)
    assert caught.value.code == ("CONNECTION" if protocol is WireProtocol.HTTP else "UNAVAILABLE")


async def test_references_upload_and_list(client: MedleyClient, server, tmp_path: Path) -> None:
    assert (await client.submit_references("r-1", ["y"]))["rouge1"] == 50.0
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 600_000)
    (tmp_path / "notes.txt").write_text("left at home")
    uploaded = await client.upload_adapter("mine", tmp_path, alias="stable")
    assert (uploaded.name, uploaded.version, uploaded.kind, uploaded.state) == ("mine", 1, "lora", "ready")
    name, alias, files = server.uploads[0]
    assert (name, alias, set(files)) == ("mine", "stable", {"adapter_config.json", "adapter_model.safetensors"})
    assert [version.name for version in await client.list_adapters()] == ["a"]


async def test_upload_of_an_empty_folder_is_refused_before_sending(
    client: MedleyClient, server, tmp_path: Path
) -> None:
    with pytest.raises(ClientError, match="no adapter files"):
        await client.upload_adapter("mine", tmp_path)
    assert server.uploads == []


async def test_many_at_once_do_not_wait_for_each_other(client: MedleyClient, server) -> None:
    # None is answered until all have arrived: a client that lets one wait for another would wait for ever.
    server.answering.clear()
    async with asyncio.timeout(60.0), asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(client.summarize(SummaryRequest("x"), 60.0))
        while server.num_started < 50:  # noqa: ASYNC110 - the fake only counts
            await asyncio.sleep(0.01)
        server.answering.set()


def _drain(client: MedleyClient, deltas: list[str] | None = None):
    async def call(request: SummaryRequest, timeout_s: float) -> None:
        async for piece in client.stream(request, timeout_s):
            if deltas is not None:
                deltas.append(piece.delta)

    return call
