"""The command line against a whole server on the fake engine, over TLS: the life of an adapter, and what a key may."""

import asyncio
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner, Result

from server.access.tls import TlsConfig
from server.cli import app
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import fake_engine, running_server

Medley = Callable[..., Awaitable[Result]]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def medley(tmp_path: Path, data_dir: Path) -> AsyncIterator[Medley]:
    """Runs a command against a running server, off its event loop."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = TlsConfig(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running_server(data_dir, fake_engine(), tls=tls) as server:

        async def run(*arguments: str, key: str = "") -> Result:
            env = {"MEDLEY_SERVER": server.http, "MEDLEY_CA_FILE": str(tmp_path / "ca.pem"), "MEDLEY_KEY": key}
            return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)

        yield run


def folder(path: Path, seed: int) -> Path:
    """A PEFT folder with a card, and something that is not an adapter's."""
    path.mkdir()
    for name, data in lora_files(seed).items():
        (path / name).write_bytes(data)
    (path / "card.md").write_text("# A card\n")
    (path / "trainer_state.json").write_text("{}")
    return path


async def succeed(command: Awaitable[Result]) -> str:
    done = await command
    assert done.exit_code == 0, done.output
    return done.stdout


async def fail(command: Awaitable[Result]) -> str:
    done = await command
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.count("\n") == 1
    return done.stderr


async def test_life_of_an_adapter(medley: Medley, tmp_path: Path) -> None:
    first, second = folder(tmp_path / "first", 1), folder(tmp_path / "second", 2)
    with tarfile.open(tmp_path / "second.tar.gz", "w:gz") as archive:
        archive.add(second / "adapter_config.json", "second/adapter_config.json")
        archive.add(second / "adapter_model.safetensors", "second/adapter_model.safetensors")
    pushed = await succeed(medley("adapters", "push", str(first), "--name", "tweets", "--alias", "stable"))
    assert "tweets:1 is ready" in pushed
    archived = medley("adapters", "push", str(tmp_path / "second.tar.gz"), "--name", "tweets", "--tag", "eu", "--json")
    assert json.loads(await succeed(archived))["tags"] == ["eu"]
    assert await succeed(medley("adapters", "promote", "tweets:2")) == "tweets@stable is tweets:2\n"
    assert "tweets:2" in await succeed(medley("summarize", "x", "--adapter", "tweets", "--output", "table"))
    assert await succeed(medley("adapters", "rollback", "tweets")) == "tweets@stable is tweets:1\n"
    assert "stable→1" in await succeed(medley("adapters", "list", "--tag", "eu"))
    assert "no adapters" in await succeed(medley("adapters", "list", "--tag", "us"))
    assert "# A card\n" in await succeed(medley("adapters", "show", "tweets:1"))
    assert "FAILED_PRECONDITION" in await fail(medley("adapters", "rm", "tweets:1"))
    assert await succeed(medley("adapters", "rm", "tweets:1", "--force")) == "tweets:1 is deleted\n"
    adapter = json.loads(await succeed(medley("adapters", "show", "tweets", "--json")))
    assert ([version["state"] for version in adapter["versions"]], adapter["aliases"]) == (["retired", "ready"], {})
    assert "retired" in await succeed(medley("adapters", "show", "tweets"))
    actions = [
        record["action"] for record in json.loads(await succeed(medley("adapters", "audit", "--json")))["records"]
    ]
    assert actions == ["retire", "rollback", "set_alias", "upload", "upload"]
    assert "rollback" in await succeed(medley("adapters", "audit", "tweets"))


async def test_refused_upload_says_why(medley: Medley, tmp_path: Path) -> None:
    broken = folder(tmp_path / "broken", 1)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    said = await fail(medley("adapters", "push", str(broken), "--name", "tweets"))
    assert said.startswith("medley: INVALID_ARGUMENT: ")
    source = medley("adapters", "push", "s3://elsewhere/folder", "--name", "tweets")
    assert (await fail(source)).startswith("medley: PERMISSION_DENIED: ")
    assert "no adapters" in await succeed(medley("adapters", "list"))


async def test_keys_made_and_revoked_beside_a_running_server(medley: Medley, data_dir: Path, tmp_path: Path) -> None:
    async def key(name: str, *options: str) -> str:
        done = medley("keys", "create", "--data-dir", str(data_dir), "--name", name, *options)
        return (await succeed(done)).strip()

    admin = await key("admin", "--scope", "admin")
    await until_closed(medley)
    tenant = await key("tenant", "--scope", "operate", "--scope", "infer", "--adapters", "mine-*")
    adapter = str(folder(tmp_path / "adapter", 1))
    await succeed(medley("adapters", "push", adapter, "--name", "yours", key=admin))
    await until_accepted(medley, tenant)
    await succeed(medley("adapters", "push", adapter, "--name", "mine-a", key=tenant))
    said = await fail(medley("adapters", "push", adapter, "--name", "yours", key=tenant))
    assert said.startswith("medley: PERMISSION_DENIED: ")
    assert "yours" not in await succeed(medley("adapters", "list", key=tenant))
    assert "NOT_FOUND" in await fail(medley("adapters", "promote", "yours:1", key=tenant))
    await succeed(medley("summarize", "x", "--adapter", "mine-a", key=tenant))
    await succeed(medley("keys", "revoke", tenant.split("_")[1], "--data-dir", str(data_dir)))
    await until_closed(medley, tenant)
    assert "yours" in await succeed(medley("adapters", "list", key=admin))


async def until_closed(medley: Medley, key: str = "") -> None:
    """Wait until the server has seen a change of its keys; it takes one; a busy machine gets more."""
    async with asyncio.timeout(10):
        while (await medley("adapters", "list", key=key)).exit_code == 0:
            pass
    said = await fail(medley("adapters", "list", key=key))
    assert said.startswith("medley: UNAUTHENTICATED: ")


async def until_accepted(medley: Medley, key: str) -> None:
    async with asyncio.timeout(10):
        while (await medley("adapters", "list", key=key)).exit_code != 0:
            pass
