"""Keys and TLS of both clients, and of the command."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from loadtest.cli import app
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, Credentials, SummaryRequest

TOKEN = "mdl_abc_0123456789"

pytestmark = pytest.mark.parametrize("protocol", list(WireProtocol))


async def test_key_travels_with_every_call(server, protocol: WireProtocol, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    async with create_client(protocol, server.address(protocol), Credentials(TOKEN)) as client:
        await client.summarize(SummaryRequest("x"), 5.0)
        async with aclosing(client.stream(SummaryRequest("x"), 5.0)) as pieces:
            assert [piece async for piece in pieces]
        await client.submit_references("r-1", ["y"])
        await client.upload_adapter("mine", tmp_path)
        await client.list_adapters()
    assert server.authorizations == [f"Bearer {TOKEN}"] * 5


async def test_without_a_key_none_is_sent(server, protocol: WireProtocol) -> None:
    async with create_client(protocol, server.address(protocol)) as client:
        await client.list_adapters()
    assert server.authorizations == [""]


async def test_tls_is_spoken_to_a_trusted_server_only(secure_server, protocol: WireProtocol) -> None:
    address = secure_server.address(protocol)
    async with create_client(protocol, address, Credentials(TOKEN, secure_server.ca_pem)) as client:
        assert (await client.summarize(SummaryRequest("x"), 5.0)).finish_reason == "stop"
    another = trustme.CA().cert_pem.bytes().decode()
    async with create_client(protocol, address, Credentials(TOKEN, another)) as client:
        with pytest.raises(ClientError):
            await client.summarize(SummaryRequest("x"), 5.0)
    assert secure_server.authorizations == [f"Bearer {TOKEN}"]


async def test_command_takes_key_and_authority_and_reports_no_key(
    secure_server, protocol: WireProtocol, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(secure_server.ca_pem)
    arguments = [
        *("--protocol", protocol.value, "--address", secure_server.address(protocol), "--rate", "50"),
        *("--num-requests", "2", "--warmup", "0", "--out", str(tmp_path / "run"), "--set", "observe.every_s=0"),
        *("--set", "client.max_lag_p99_ms=60000"),
    ]
    env = {"MEDLEY_KEY": TOKEN, "MEDLEY_CA_FILE": str(tmp_path / "ca.pem")}
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)
    assert result.exit_code == 0, result.output
    assert secure_server.authorizations == [f"Bearer {TOKEN}"] * 2
    written = {file.name: file.read_text() for file in (tmp_path / "run").iterdir() if file.suffix != ".png"}
    assert "report.json" in written
    assert TOKEN not in "".join(written.values()) + result.output


def test_command_with_an_unreadable_authority_is_refused(protocol: WireProtocol) -> None:
    result = CliRunner().invoke(app, ["--protocol", protocol.value, "--ca-file", "/nowhere"])
    assert result.exit_code == 2
    assert "cannot read /nowhere" in result.output
