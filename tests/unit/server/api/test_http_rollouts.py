"""Rollouts over HTTP: statuses, and bodies that only JSON can have. The rest is in the contract of both front ends."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROLLOUTS = "/v1/adapters/a/rollouts"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path_factory.mktemp("server"), fake_engine()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        for seed, alias in ((1, "stable"), (2, "next")):
            parts = [("files", item) for item in lora_files(seed).items()]
            answer = await client.post("/v1/adapters/a/versions", files=parts, params={"alias": alias})
            assert answer.status_code == 201, answer.text
        yield client


async def begin(client: httpx.AsyncClient, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    return await client.post(ROLLOUTS, json={"candidate": 2, **fields}, headers=headers)


async def end(client: httpx.AsyncClient, rollout: dict[str, Any]) -> None:
    answer = await client.post(f"{ROLLOUTS}/{rollout['id']}/rollback")
    assert answer.json()["state"] == "rolled_back"


async def test_same_key_again_gives_the_first_rollout(client: httpx.AsyncClient) -> None:
    first = await begin(client, "k1")
    assert first.status_code == 201
    assert (await begin(client, "k1")).json() == first.json()
    other = await begin(client, "k1", percent=10)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "ALREADY_EXISTS")
    without = await begin(client)
    assert (without.status_code, without.json()["error"]["code"]) == (412, "FAILED_PRECONDITION")
    await end(client, first.json())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"percent": "50"}, "percent"),
        ({"mode": "blue-green"}, "mode"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
async def test_body_that_cannot_be_is_refused_by_its_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await begin(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "path", [f"{ROLLOUTS}/ro_none", "/v1/adapters/none/rollouts", "/v1/adapters/none/rollouts/ro_none"]
)
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
