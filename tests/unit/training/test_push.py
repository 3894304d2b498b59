"""A trained adapter goes to a running server by the people's own command, and answers there under its alias."""

import asyncio

import httpx
import pytest
from typer.testing import CliRunner

from tests.fixtures.server_process import ServerProcess
from training.cli import app
from training.errors import PushError
from training.push import push_adapter

SECTION = "lora: {rank: 2, alpha: 4}"


def test_push_adapter_without_a_server_says_that_it_was_trained(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(PushError, match=r"was trained but not uploaded: medley: UNAVAILABLE: no answer from ftp://"):
        push_adapter(tmp_path, "tickets", "ftp://127.0.0.1:9", None)


@pytest.mark.torch
@pytest.mark.slow
async def test_train_and_push_the_server_answers_with_the_canary(tmp_path, tiny_base, tiny_data):
    from tests.unit.training.test_cli import _arguments

    server = ServerProcess(tmp_path / "server", {"engine": {"model": str(tiny_base)}}, engine="native")
    await server.start()
    try:
        push = ("--push", server.http, "--alias", "canary")
        arguments = _arguments(tmp_path, tiny_base, tiny_data, SECTION, *push)
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert result.exit_code == 0, result.output
        assert "tickets:1" in result.output
        body = {"text": "#Person1#: I want 3 tickets.", "adapters": ["tickets@canary"], "max_new_tokens": 3}
        async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
            answer = (await client.post("/v1/summarize", json=body)).json()
            assert answer["adapters"][0]["name"] == "tickets", answer
            assert "canary" in (await client.get("/v1/adapters/tickets")).text
        again = push_adapter(tmp_path / "run" / "result", "tickets", server.http, None)
        assert "tickets" in again
    finally:
        await server.stop()


@pytest.mark.torch
@pytest.mark.slow
async def test_trained_base_is_one_the_server_can_be_started_on(tmp_path, tiny_base, tiny_data):
    from tests.unit.training.test_cli import _arguments

    arguments = _arguments(tmp_path, tiny_base, tiny_data, "full: {}")
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run" / "result"
    server = ServerProcess(tmp_path / "server", {"engine": {"model": str(folder)}}, engine="native")
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
            models = (await client.get("/v1/models")).json()
        assert models["data"][0]["id"] == "tickets"
    finally:
        await server.stop()
