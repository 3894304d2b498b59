"""What serves here, and what the key that calls may do, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from adapters.registry import Change
from server.access.keys import KeyRing
from server.core.principal import Scope
from server.evaluation.evaluator import EvaluationConfig
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

# Nobody asks for scores here.
COLD = EvaluationConfig(warm_at_start=False)


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[KeyRing]:
    ring = KeyRing(f"sqlite:///{tmp_path / 'registry.db'}")
    yield ring
    ring.close()


@pytest.fixture
async def server(tmp_path: Path, ring: KeyRing) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path, fake_engine(max_loras=3), evaluation=COLD) as running:
        yield running


def made(ring: KeyRing, *scopes: Scope, patterns: tuple[str, ...] = ("*",), expires_s: float | None = None) -> str:
    return ring.create("mine", scopes=scopes, patterns=patterns, expires_s=expires_s, change=Change("test"))[0]


async def asked(server: RunningServer, path: str, token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=server.http, headers=headers) as client:
        return await client.get(path)


async def test_own_key_without_keys_is_nobodys_and_may_everything(server: RunningServer) -> None:
    assert (await asked(server, "/v1/keys/self")).json() == {
        "who": "anonymous",
        "name": "",
        "is_open": True,
        "scopes": ["infer", "read", "operate", "admin"],
        "adapters": ["*"],
        "sees_all": True,
        "expires_s": None,
    }


async def test_own_key_tells_what_it_may_with_what_that_includes(tmp_path: Path, ring: KeyRing) -> None:
    tokens = [made(ring, Scope.INFER), made(ring, Scope.OPERATE, patterns=("a-*", "b"), expires_s=9e9)]
    async with running_server(tmp_path, fake_engine(), evaluation=COLD) as server:
        infer, operate = [(await asked(server, "/v1/keys/self", token)).json() for token in tokens]
    assert (infer["scopes"], infer["sees_all"], infer["is_open"]) == (["infer"], True, False)
    assert (operate["scopes"], operate["sees_all"]) == (["read", "operate"], False)
    assert (operate["name"], operate["adapters"], operate["expires_s"]) == ("mine", ["a-*", "b"], 9e9)
    assert operate["who"] == f"key:{tokens[1].split('_')[1]}"
    assert tokens[1].split("_")[2] not in str(operate)


async def test_status_tells_what_serves_and_what_is_resident(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.http) as client:
        parts = [("files", part) for part in lora_files().items()]
        version = (await client.post("/v1/adapters/lora/versions", files=parts)).json()
        before = (await client.get("/v1/status")).json()
        assert (await client.post("/v1/summarize", json={"text": "x", "adapters": ["lora"]})).status_code == 200
        after = (await client.get("/v1/status")).json()
    assert (before["ready"], before["reason"], before["base"], before["engine"]) == (True, "", "fake", "fake")
    assert (before["num_running"], before["num_waiting"], before["max_loras"]) == (0, 0, 3)
    assert (before["resident"], after["resident"]) == ([], [version["digest"]])


async def test_status_of_a_server_whose_engine_died_says_so(server: RunningServer) -> None:
    engine = server.container._engine
    engine.kill()  # type: ignore[union-attr]
    answer = (await asked(server, "/v1/status")).json()
    assert (answer["ready"], answer["reason"]) == (False, "the engine died")


async def test_status_is_for_those_who_see_every_adapter(tmp_path: Path, ring: KeyRing) -> None:
    tokens = [made(ring, Scope.READ), made(ring, Scope.READ, patterns=("a-*",)), made(ring, Scope.INFER)]
    async with running_server(tmp_path, fake_engine(), evaluation=COLD) as server:
        assert [(await asked(server, "/v1/status", token)).status_code for token in tokens] == [200, 403, 403]
