"""Rollouts over HTTP: the shape of an answer, refusals, and retries that change nothing twice."""

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


async def test_rollout_has_its_terms_arms_and_decisions(client: httpx.AsyncClient) -> None:
    answer = await begin(client, percent=20, mode="shadow", metric="rouge1", automatic=False, min_effect=0.5)
    assert answer.status_code == 201
    rollout = answer.json()
    nothing = {"num_requests": 0, "num_scored": 0, "mean": None, "error_rate": None, "p95_e2e_ms": None}
    (start,) = rollout.pop("decisions")
    assert (start["by"], start["action"]) == ("anonymous", "start")
    rollout_id, created_s = rollout.pop("id"), rollout.pop("created_s")
    assert rollout_id.startswith("ro_")
    assert start["at_s"] == created_s
    assert rollout == {
        "adapter": "a",
        "alias": "stable",
        "stable_version": 1,
        "candidate_version": 2,
        "mode": "shadow",
        "percent": 20,
        "metric": "rouge1",
        "automatic": False,
        "min_effect": 0.5,
        "max_num_requests": 5000,
        "max_error_rate_increase": 0.05,
        "max_latency_ratio": 2.0,
        "state": "running",
        "verdict": "NO_DATA",
        "arms": {"stable": nothing, "candidate": nothing},
        "ended_s": None,
    }
    whole = answer.json()
    assert (await client.get(f"{ROLLOUTS}/{rollout_id}")).json() == whole
    assert (await client.get(ROLLOUTS)).json()["rollouts"][0] == whole
    await end(client, whole)


async def test_same_key_again_gives_the_first_rollout(client: httpx.AsyncClient) -> None:
    first = await begin(client, "k1")
    assert (await begin(client, "k1")).json() == first.json()
    other = await begin(client, "k1", percent=10)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "ALREADY_EXISTS")
    without = await begin(client)
    assert (without.status_code, without.json()["error"]["code"]) == (412, "FAILED_PRECONDITION")
    await end(client, first.json())


async def test_reason_of_a_decision_by_hand_is_kept(client: httpx.AsyncClient) -> None:
    begun = (await begin(client)).json()
    path = f"{ROLLOUTS}/{begun['id']}/rollback"
    refused = await client.post(path, json={"reason": "no \0"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "INVALID_ARGUMENT")
    answer = await client.post(path, json={"reason": "the names are wrong"})
    assert answer.json()["decisions"][-1]["reason"] == "the names are wrong"


async def test_promotion_by_hand_moves_the_alias_once(client: httpx.AsyncClient) -> None:
    begun = (await begin(client, alias="next", candidate=1)).json()
    for _ in range(2):
        answer = await client.post(f"{ROLLOUTS}/{begun['id']}/promote")
        assert (answer.status_code, answer.json()["state"]) == (200, "promoted")
    assert (await client.get("/v1/adapters/a")).json()["aliases"]["next"] == 1
    assert answer.json()["decisions"][-1]["reason"] == "by hand"
    refused = await client.post(f"{ROLLOUTS}/{begun['id']}/rollback")
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "FAILED_PRECONDITION")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"percent": 100}, "percent"),
        ({"percent": "50"}, "percent"),
        ({"mode": "blue-green"}, "mode"),
        ({"metric": "rouge L"}, "metric"),
        ({"candidate": 1}, "candidate"),
        ({"max_latency_ratio": 0.5}, "max_latency_ratio"),
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
