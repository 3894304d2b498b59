"""Rollouts by hand, one suite over HTTP and gRPC, on a whole server with the fake engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any
from zlib import crc32

import pytest
import pytest_asyncio

from adapters.manifest import MANIFEST_FILE
from adapters.registry import Change
from server.access.keys import KeyRing
from server.core.principal import Scope
from tests.fixtures.front_end_clients import Call, Refused
from tests.fixtures.lifecycle_clients import Labels
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.rollout_clients import GrpcRollouts, HttpRollouts, RolloutClient
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = pytest.mark.parametrize("kind", [HttpRollouts, GrpcRollouts], ids=["http", "grpc"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path_factory.mktemp("server"), fake_engine()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[HttpRollouts, GrpcRollouts], ids=["http", "grpc"])
async def client(server: RunningServer, request: pytest.FixtureRequest) -> AsyncIterator[RolloutClient]:
    async with request.param(server) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def name(client: RolloutClient, request: pytest.FixtureRequest) -> str:
    """An adapter of this test's own: the first version is stable, the second another alias's."""
    own = f"own-{client.name}-{crc32(request.node.name.encode()):x}"
    await client.push(own, lora_files(1), Labels("stable"))
    await client.push(own, lora_files(2), Labels("next"))
    return own


async def refusal(refused: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as caught:
        await refused
    return caught.value


async def test_rollout_has_its_terms_arms_and_decisions(client: RolloutClient, name: str) -> None:
    whole = await client.start(name, 2, percent=20, mode="shadow", metric="rouge1", automatic=False, min_effect=0.5)
    nothing = {"num_requests": 0, "num_scored": 0, "mean": None, "error_rate": None, "p95_e2e_ms": None}
    told = dict(whole)
    (start,) = told.pop("decisions")
    assert (start["by"], start["action"], start["at_s"]) == ("anonymous", "start", told.pop("created_s"))
    assert told.pop("id").startswith("ro_")
    assert told == {
        "adapter": name,
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
    assert await client.rollout(name, whole["id"]) == whole
    assert await client.rollouts(name) == [whole]


async def test_what_is_left_out_is_as_the_server_has_it(client: RolloutClient, name: str) -> None:
    begun = await client.start(name, 2)
    chosen = ("alias", "mode", "percent", "metric", "automatic", "min_effect", "max_num_requests")
    assert [begun[term] for term in chosen] == ["stable", "canary", 50, "rougeL", True, 0.0, 5000]


async def test_figures_are_those_of_the_requests(client: RolloutClient, name: str) -> None:
    begun = await client.start(name, 2, automatic=False)
    for _ in range(6):
        await client.summarize(Call(adapters=[name], references=["one two three"]))
    async with asyncio.timeout(20):
        while sum(arm["num_scored"] for arm in (await client.rollout(name, begun["id"]))["arms"].values()) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    ended = await client.roll_back(name, begun["id"], "seen enough")
    arms = ended["arms"]
    assert arms["stable"]["num_requests"] + arms["candidate"]["num_requests"] == 6
    for arm in arms.values():
        assert (arm["mean"] is None) == (arm["num_scored"] == 0)
    last = ended["decisions"][-1]
    assert (last["action"], last["reason"], last["data"]["arms"]) == ("roll_back", "seen enough", arms)
    assert ended["ended_s"] >= ended["created_s"]
    assert await client.rollout(name, begun["id"]) == ended


async def test_promotion_moves_the_alias_once(client: RolloutClient, name: str) -> None:
    begun = await client.start(name, 1, alias="next")
    for _ in range(2):
        ended = await client.promote(name, begun["id"])
        assert (ended["state"], ended["decisions"][-1]["reason"]) == ("promoted", "by hand")
    assert (await client.adapter(name))["aliases"] == {"stable": 1, "next": 1}
    refused = await refusal(client.roll_back(name, begun["id"]))
    assert refused.code == "FAILED_PRECONDITION"


async def test_same_key_again_gives_the_first_rollout(client: RolloutClient, name: str) -> None:
    first = await client.start(name, 2, key=name)
    assert await client.start(name, 2, key=name) == first
    assert (await refusal(client.start(name, 2, key=name, percent=10))).code == "ALREADY_EXISTS"
    assert (await refusal(client.start(name, 2))).code == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"percent": 100}, "percent"),
        ({"percent": 0}, "percent"),
        ({"metric": "rouge L"}, "metric"),
        ({"metric": "bleu"}, "metric"),
        ({"metric": "length_ratio"}, "metric"),
        ({"candidate": 1}, "candidate"),
        ({"candidate": 0}, "candidate"),
        ({"min_effect": -1.0}, "min_effect"),
        ({"max_num_requests": 0}, "max_num_requests"),
        ({"max_error_rate_increase": 1.5}, "max_error_rate_increase"),
        ({"max_latency_ratio": 0.5}, "max_latency_ratio"),
    ],
)
async def test_terms_that_cannot_be_kept_are_refused_by_their_field(
    client: RolloutClient, name: str, fields: dict[str, Any], param: str
) -> None:
    refused = await refusal(client.start(name, **{"candidate": 2} | fields))
    assert (refused.code, refused.param) == ("INVALID_ARGUMENT", param)
    assert await client.rollouts(name) == []


@pytest.mark.parametrize("reason", ["x" * 1001, "no \0"])
async def test_reason_that_cannot_be_kept_is_refused(client: RolloutClient, name: str, reason: str) -> None:
    begun = await client.start(name, 2)
    for decide in (client.promote, client.roll_back):
        assert (await refusal(decide(name, begun["id"], reason))).code == "INVALID_ARGUMENT"
    assert (await client.rollout(name, begun["id"]))["state"] == "running"


async def test_what_is_not_there_is_not_found(client: RolloutClient, name: str) -> None:
    asked = [
        client.start("none", 2),
        client.start(name, 9),
        client.start(name, 2, alias="nowhere"),
        client.rollouts("none"),
        client.rollout("none", "ro_none"),
        client.rollout(name, "ro_none"),
        client.promote(name, "ro_none"),
        client.roll_back(name, "ro_none"),
    ]
    assert {(await refusal(one)).code for one in asked} == {"NOT_FOUND"}


async def test_metric_that_a_version_is_not_scored_by_is_refused(client: RolloutClient, name: str) -> None:
    manifest = {"name": name, "kind": "lora", "task": "classification"}
    files = lora_files(3) | {MANIFEST_FILE: json.dumps(manifest).encode()}
    third = (await client.push(name, files))["version"]
    refused = await refusal(client.start(name, third))
    assert (refused.code, refused.param) == ("INVALID_ARGUMENT", "metric")
    assert "version 3 is scored by exact_match" in refused.message
    await client.set_alias(name, "next", third)
    fourth = (await client.push(name, lora_files(4) | {MANIFEST_FILE: json.dumps(manifest).encode()}))["version"]
    assert (await client.start(name, fourth, alias="next", metric="exact_match"))["metric"] == "exact_match"


async def test_candidate_of_another_role_is_refused(client: RolloutClient, name: str) -> None:
    third = (await client.push(name, prompt_files()))["version"]
    assert (await refusal(client.start(name, third))).code == "FAILED_PRECONDITION"


@CLIENTS
async def test_keys_see_rollouts_of_their_adapters_and_change_them_only_as_operators(
    kind: type[HttpRollouts | GrpcRollouts], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = tmp_path_factory.mktemp("keyed")
    ring = KeyRing(f"sqlite:///{data_dir / 'registry.db'}")
    scopes = {"ops": {Scope.OPERATE}, "reader": {Scope.READ}, "app": {Scope.INFER}}
    tokens = {who: ring.create(who, scopes=scope, change=Change("test"))[0] for who, scope in scopes.items()}
    tokens["tenant"] = ring.create("tenant", scopes={Scope.OPERATE}, patterns=("b-*",), change=Change("test"))[0]
    async with running_server(data_dir, fake_engine()) as server:
        async with kind(server, tokens["ops"]) as ops:
            for seed in (1, 2):
                await ops.push("a", lora_files(seed), Labels("stable" if seed == 1 else ""))
            begun = await ops.start("a", 2)
            assert begun["decisions"][0]["by"].startswith("key:")
        codes = {
            "reader": (None, "PERMISSION_DENIED"),
            "app": ("PERMISSION_DENIED", "PERMISSION_DENIED"),
            "tenant": ("NOT_FOUND", "NOT_FOUND"),
            "": ("UNAUTHENTICATED", "UNAUTHENTICATED"),
        }
        for who, (reads, changes) in codes.items():
            async with kind(server, tokens.get(who, "")) as client:
                reading = [client.rollouts("a"), client.rollout("a", begun["id"])]
                changing = [client.start("a", 2), client.promote("a", begun["id"]), client.roll_back("a", begun["id"])]
                for code, calls in ((reads, reading), (changes, changing)):
                    for call in calls:
                        if code is None:
                            assert await call
                        else:
                            assert (await refusal(call)).code == code
    ring.close()
