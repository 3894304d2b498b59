"""The story of a rollout on a whole server: by itself it rolls a weak candidate back and promotes a better one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from medley.v1 import inference_pb2 as pb
from medley.v1 import inference_pb2_grpc
from server.service.rollouts import RolloutConfig
from tests.fixtures.peft_files import lora_files
from tests.fixtures.rollout_story import NAME, RolloutStory
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    engine = fake_engine(max_num_seqs=32, max_num_waiting=256)
    async with running_server(tmp_path, engine, rollouts=RolloutConfig(look_s=0.05)) as server:
        yield server


@pytest_asyncio.fixture
async def story(server: RunningServer) -> AsyncIterator[RolloutStory]:
    async with httpx.AsyncClient(base_url=server.http, timeout=30) as client:
        story = RolloutStory(client)
        assert await story.upload(lora_files(1), "stable") == 1
        assert await story.upload(lora_files(2)) == 2
        yield story


async def test_weak_candidate_is_rolled_back_by_itself(story: RolloutStory) -> None:
    begun = await story.begin(2, percent=50)
    ended = await story.call_until_ended(begun["id"], best=1, max_num_calls=1600)
    assert (ended["state"], ended["verdict"], await story.stable()) == ("rolled_back", "WORSE", 1)
    last = ended["decisions"][-1]
    assert (last["by"], last["action"]) == ("server", "roll_back")
    arms = last["data"]["arms"]
    assert arms == ended["arms"]
    assert arms["stable"]["mean"] > arms["candidate"]["mean"]
    assert min(arms["stable"]["num_scored"], arms["candidate"]["num_scored"]) >= 10
    # Of those that took part: the callers of the last batch may have come after the decision.
    total = arms["stable"]["num_requests"] + arms["candidate"]["num_requests"]
    assert 0.2 * total < arms["candidate"]["num_requests"] < 0.8 * total
    # From now on the alias is the stable version's alone.
    story.served.clear()
    await asyncio.gather(*(story.call(1) for _ in range(32)))
    assert story.served == {1: 32}


async def test_better_candidate_is_promoted_by_itself_and_audited_as_the_servers(story: RolloutStory) -> None:
    begun = await story.begin(2, percent=50)
    ended = await story.call_until_ended(begun["id"], best=2, max_num_calls=1600)
    assert (ended["state"], ended["verdict"], await story.stable()) == ("promoted", "BETTER", 2)
    assert [decision["action"] for decision in ended["decisions"]][:: len(ended["decisions"]) - 1] == [
        "start",
        "promote",
    ]
    (change,) = (await story.client.get(f"/v1/adapters/{NAME}/audit", params={"limit": 1})).json()["records"]
    assert (change["who"], change["action"], change["version"]) == ("server", "set_alias", 2)
    story.served.clear()
    await asyncio.gather(*(story.call(2) for _ in range(32)))
    assert story.served == {2: 32}


async def test_rollout_without_references_is_never_promoted_and_ends_at_its_limit(story: RolloutStory) -> None:
    begun = await story.begin(2, max_num_requests=60)
    for _ in range(4):
        await asyncio.gather(*(story.ask(story.text()) for _ in range(16)))
    ended = await story.ended(begun["id"])
    assert (ended["state"], ended["verdict"], await story.stable()) == ("ended", "NO_DATA", 1)


async def test_shadow_is_scored_and_never_answers(story: RolloutStory) -> None:
    begun = await story.begin(2, mode="shadow", percent=100)
    for _ in range(60):
        for _ in range(8):
            await story.call(2)
        ended = await story.rollout(begun["id"])
        if ended["state"] != "running":
            break
    # Its answers are better, so it is promoted though nobody ever got one.
    assert (ended["state"], ended["verdict"], await story.stable()) == ("promoted", "BETTER", 2)
    assert ended["arms"]["candidate"]["num_scored"] >= 10
    # Of the last calls before it, and of those between the move of the alias and the word of it.
    num_after = 16
    assert story.served[1] >= story.served.total() - num_after


async def test_key_stays_on_its_side_and_versions_named_take_no_part(
    story: RolloutStory, server: RunningServer
) -> None:
    begun = await story.begin(2, percent=50, automatic=False)
    sides: dict[str, set[int]] = {}
    for _ in range(3):
        for user in map(str, range(20)):
            answer = await story.ask(story.text(), routing_key=user)
            sides.setdefault(user, set()).add(answer["adapters"][0]["version"])
    assert all(len(side) == 1 for side in sides.values())
    assert {version for side in sides.values() for version in side} == {1, 2}
    chat = {"model": NAME, "messages": [{"role": "user", "content": "hello there"}]}
    for user, side in sides.items():
        answer = await story.client.post("/v1/chat/completions", json={**chat, "user": user, "n": 2})
        uses = [use for choice in answer.json()["choices"] for use in choice["adapters"]]
        assert [use["version"] for use in uses] == 2 * list(side)
    room = server.container._evaluation
    assert room is not None
    await asyncio.wrap_future(room.recorder.flush())  # what ended is written down a moment later
    before = (await story.rollout(begun["id"]))["arms"]
    for _ in range(10):
        assert (await story.ask("hello", f"{NAME}:1"))["adapters"][0]["version"] == 1
    assert (await story.rollout(begun["id"]))["arms"] == before


async def test_key_goes_over_grpc_as_well(story: RolloutStory, server: RunningServer) -> None:
    await story.begin(2, percent=50, automatic=False)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for user in map(str, range(12)):
            side = (await story.ask("hello there", routing_key=user))["adapters"][0]["version"]
            fields = {"adapters": [NAME], "routing_key": user}
            summary = await stub.Summarize(pb.SummarizeRequest(text="hello", **fields))
            pieces = [piece async for piece in stub.StreamGenerate(pb.StreamGenerateRequest(prompt="hello", **fields))]
            assert summary.adapters[0].version == pieces[0].adapters[0].version == side


async def test_alias_moved_by_hand_ends_the_rollout(story: RolloutStory) -> None:
    third = await story.upload(lora_files(3))
    begun = await story.begin(2)
    await story.client.put(f"/v1/adapters/{NAME}/aliases/stable", json={"version": third})
    assert {(await story.ask(story.text()))["adapters"][0]["version"] for _ in range(8)} == {third}
    ended = await story.ended(begun["id"])
    assert (ended["state"], ended["decisions"][-1]["action"], await story.stable()) == ("ended", "end", third)
    assert f"version {third}" in ended["decisions"][-1]["reason"]
