"""Two tenants on one server: neither can see, use, overwrite or infer the existence of the other's adapters.

Answers are compared whole (status, headers, trailers, words) on every route and method: about a name of the other
tenant, about one of the same pattern that does not exist, and about one of the caller's own that does not.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from grpc import aio

from adapters.registry import Change
from server.access.keys import KeyRing
from server.api.grpc.access import GRPC_RULES
from server.api.http.access import HTTP_RULES
from server.core.principal import Scope
from server.service.access import PUBLIC
from tests.fixtures import tenant_probes as probes
from tests.fixtures.peft_files import Files, lora_files
from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.slow

# As long as each other, so that lengths can be compared too.
FOREIGN, NOWHERE, OWN_NOWHERE = "a-secret", "a-absent", "b-absent"
NAMELESS = {
    ("GET", "/v1/adapters"),
    ("GET", "/v1/models"),
    ("GET", "/v1/evaluations"),
    ("GET", "/v1/audit"),
    ("GET", "/metrics"),
    ("GET", "/v1/keys/self"),
    ("GET", "/v1/status"),
    ("POST", "/v1/references"),
    ("POST", "/v1/references/batch"),
    ("GET", "/v1/reference-sets"),
    ("PUT", "/v1/reference-sets/{name}"),
    ("DELETE", "/v1/reference-sets/{name}"),
    ("GET", "/docs"),
    ("GET", "/docs/assets/{path}"),
    ("GET", "/openapi.json"),
    "/medley.v1.AdapterService/ListAdapters",
    "/medley.v1.EvaluationService/SubmitReferences",
    "/medley.v1.EvaluationService/GetEvaluation",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


@dataclass
class Tenants:
    """The server and what each tenant speaks to it with."""

    server: ServerProcess
    tokens: dict[str, str]

    def http(self, tenant: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.tokens[tenant]}"}
        return httpx.AsyncClient(base_url=self.server.http, headers=headers, timeout=120)

    async def state(self) -> Any:
        """Return what the first tenant sees of its adapter, and its history."""
        async with self.http("a") as client:
            paths = (f"/v1/adapters/{FOREIGN}", f"/v1/adapters/{FOREIGN}/audit")
            return [(await client.get(path)).raise_for_status().json() for path in paths]


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    server = ServerProcess(tmp_path_factory.mktemp("tenants"))
    server.data_dir.mkdir()
    ring = KeyRing(f"sqlite:///{server.data_dir / 'registry.db'}")
    tokens = {
        tenant: ring.create(
            tenant, scopes={Scope.INFER, Scope.OPERATE}, patterns=(f"{tenant}-*",), change=Change("test")
        )[0]
        for tenant in "ab"
    }
    ring.close()
    try:
        asyncio.run(server.start())
        tenants = Tenants(server, tokens)
        asyncio.run(_furnish(tenants))
        yield tenants
    finally:
        server.kill()


async def _furnish(tenants: Tenants) -> None:
    for tenant, name in (("a", FOREIGN), ("b", "b-mine")):
        async with tenants.http(tenant) as client:
            await upload(client, name, lora_files(seed=ord(tenant)), alias="stable")


async def upload(client: httpx.AsyncClient, name: str, files: Files, key: str = "", alias: str = "") -> dict[str, Any]:
    response = await client.post(
        f"/v1/adapters/{name}/versions",
        files=[("files", part) for part in files.items()],
        params={"alias": alias} if alias else {},
        headers={"idempotency-key": key},
    )
    assert response.status_code == 201, response.text
    return dict(response.json())


@pytest.fixture
async def channel(tenants: Tenants) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(tenants.server.grpc) as channel:
        yield channel


def test_every_route_and_method_is_probed_or_names_no_adapter() -> None:
    probed = {*probes.http_probes("x"), *probes.grpc_probes("x")}
    ruled = {route for rules in (HTTP_RULES, GRPC_RULES) for route, rule in rules.items() if rule is not PUBLIC}
    assert probed | NAMELESS == ruled
    assert not probed & NAMELESS


async def test_foreign_adapter_over_http_answers_as_one_that_does_not_exist(tenants: Tenants) -> None:
    before = await tenants.state()
    async with tenants.http("b") as client:
        foreign, nowhere = [await probes.http_answers(client, name) for name in (FOREIGN, NOWHERE)]
        own = await probes.http_answers(client, OWN_NOWHERE, without=probes.UPLOADS)
    assert foreign == nowhere
    for route in foreign.keys() - probes.UPLOADS:
        assert foreign[route] == own[route], route
        assert {answer[0] for answer in foreign[route]} == {404}, route
    for route in foreign.keys() & probes.UPLOADS:
        assert {answer[0] for answer in foreign[route]} == {403}, route
    assert await tenants.state() == before


async def test_foreign_adapter_over_grpc_answers_as_one_that_does_not_exist(
    tenants: Tenants, channel: aio.Channel
) -> None:
    before = await tenants.state()
    foreign, nowhere = [await probes.grpc_answers(channel, tenants.tokens["b"], name) for name in (FOREIGN, NOWHERE)]
    own = await probes.grpc_answers(channel, tenants.tokens["b"], OWN_NOWHERE, without=probes.UPLOADS)
    assert foreign == nowhere
    for method in foreign.keys() - probes.UPLOADS:
        assert foreign[method] == own[method], method
        assert {answer[0] for answer in foreign[method]} == {"NOT_FOUND"}, method
    for method in foreign.keys() & probes.UPLOADS:
        assert {answer[0] for answer in foreign[method]} == {"PERMISSION_DENIED"}, method
    assert await tenants.state() == before


async def test_owner_is_answered_where_the_other_is_not(tenants: Tenants, channel: aio.Channel) -> None:
    """Else the tests above would find nothing whatever the server did."""
    async with tenants.http("a") as client:
        assert (await client.get(f"/v1/adapters/{FOREIGN}")).status_code == 200
        body = {"text": probes.TEXT, "adapters": [FOREIGN]}
        assert (await client.post("/v1/summarize", json=body)).status_code == 200
    message = probes.grpc_probes(FOREIGN)["/medley.v1.AdapterService/GetAdapter"][0]
    method = "/medley.v1.AdapterService/GetAdapter"
    assert (await probes.grpc_answer(channel, tenants.tokens["a"], method, message))[0] == "OK"


async def test_lists_and_scores_hold_nothing_of_the_other_tenant(tenants: Tenants, channel: aio.Channel) -> None:
    async with tenants.http("a") as owner, tenants.http("b") as other:
        body = {"text": probes.TEXT, "adapters": [FOREIGN], "request_id": "scored-1"}
        assert (await owner.post("/v1/summarize", json=body)).status_code == 200
        references = {"request_id": "scored-1", "references": [probes.TEXT]}
        scored = await owner.post("/v1/references", json=references)
        assert scored.status_code == 200, scored.text
        for path in ("/v1/adapters", "/v1/models", "/v1/evaluations"):
            assert FOREIGN in (await owner.get(path)).text, path
            answer = await other.get(path)
            assert answer.status_code == 200
            assert FOREIGN not in answer.text, path
        for path in ("/v1/audit", "/v1/status", "/metrics"):
            assert (await other.get(path)).status_code == 403
            assert (await owner.get(path)).status_code == 403
    methods = ("AdapterService/ListAdapters", "AdapterService/ListAudit", "EvaluationService/GetEvaluation")
    for method in methods:
        answer = await probes.grpc_answer(
            channel, tenants.tokens["b"], f"/medley.v1.{method}", [probes.nothing(method)]
        )
        assert FOREIGN not in str(answer), method
        assert FOREIGN.encode() not in b"".join(answer[-1]), method  # type: ignore[arg-type]


async def test_references_for_a_request_of_the_other_answer_as_for_none(tenants: Tenants, channel: aio.Channel) -> None:
    async with tenants.http("a") as owner, tenants.http("b") as other:
        body = {"text": probes.TEXT, "adapters": [FOREIGN], "request_id": "theirs-1"}
        assert (await owner.post("/v1/summarize", json=body)).status_code == 200
        answers = []
        for request_id in ("theirs-1", "nobody-1"):
            response = await other.post("/v1/references", json={"request_id": request_id, "references": [probes.TEXT]})
            text = response.text.replace(request_id, "<asked>")
            answers.append((response.status_code, probes.without_ids(text)))
            message = probes.evaluation_of(request_id)
            method = "/medley.v1.EvaluationService/SubmitReferences"
            answers.append(await probes.grpc_answer(channel, tenants.tokens["b"], method, [message], request_id))
        assert answers[:2] == answers[2:]
        assert answers[0][0] == 404
        # A caller who takes the same id for a request of its own does not take the owner's away.
        assert (await other.post("/v1/summarize", json={"text": "x y", "request_id": "theirs-1"})).status_code == 200
        references = {"request_id": "theirs-1", "references": [probes.TEXT]}
        scored = await owner.post("/v1/references", json=references)
        assert scored.status_code == 200
        assert scored.json()["scores"]["rouge1"] > 50


async def test_same_bytes_and_same_keys_as_the_other_change_no_answer(tenants: Tenants) -> None:
    async with tenants.http("a") as owner, tenants.http("b") as other:
        await upload(owner, "a-other", lora_files(seed=1), key="shared-key")
        same = await upload(other, "b-same", lora_files(seed=1), key="shared-key")
        fresh = await upload(other, "b-fresh", lora_files(seed=2))
    differing = {"name", "digest", "created_s"}
    assert {key: same[key] for key in same.keys() - differing} == {key: fresh[key] for key in fresh.keys() - differing}
