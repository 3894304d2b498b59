"""Several requests of one call: all or none, each by its index, and the quota counts each."""

import asyncio

import pytest

from adapters.registry_records import Change
from server.core.errors import ErrorCode, InvalidArgumentError, MedleyError, ResourceExhaustedError
from server.core.principal import Principal, Scope
from server.core.request import GenerationRequest
from server.core.sampling import MAX_SEED
from server.engine.fake import FakeEngineConfig
from server.service.inference import InferenceConfig
from server.service.several import copies, named_apart
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room

SLOW = FakeEngineConfig(step_time_s=0.01)


def limited(room: Room, **limits: int) -> Principal:
    _, key = room.key_ring.create("x", scopes={Scope.INFER}, change=Change("test"), **limits)
    return Principal(f"key:{key.key_id}", key.scopes)


async def test_chunks_come_with_their_index_and_add_up(room: Room, ask: AskFor) -> None:
    texts = ["one", "a second", "and the third"]
    several = await room.inference.open_several(ANYONE, [ask(text) for text in texts])
    found, ends = [""] * 3, []
    async for index, chunk in several.chunks():
        found[index] += chunk.text
        if chunk.finish_reason:
            ends.append(index)
    await several.aclose()
    assert found == [f"base: {text}" for text in texts]
    assert sorted(ends) == [0, 1, 2]
    assert [generation.request_id for generation in several.generations] == ["r-0", "r-1", "r-2"]
    assert several.request_id == "r"
    assert room.nothing_left()


async def test_chunks_of_all_come_while_all_run(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    several = await room.inference.open_several(ANYONE, [ask("x" * 20) for _ in range(3)])
    indices = [index async for index, _ in several.chunks()]
    await several.aclose()
    assert set(indices[:6]) == {0, 1, 2}


async def test_single_request_keeps_its_id(room: Room, ask: AskFor) -> None:
    several = await room.inference.open_several(ANYONE, [ask("hi")])
    assert [generation.request_id for generation in several.generations] == ["r"]
    assert "".join([chunk.text async for _, chunk in several.chunks()]) == "base: hi"
    await several.aclose()
    assert room.nothing_left()


async def test_results_are_in_the_order_of_the_requests(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    several = await room.inference.open_several(ANYONE, [ask("a longer one"), ask("b")])
    assert [result.text for result in await several.results()] == ["base: a longer one", "base: b"]
    assert room.nothing_left()


@pytest.mark.parametrize("index", [0, 2])
async def test_one_refusal_refuses_all_and_leaves_nothing(make_room: MakeRoom, ask: AskFor, index: int) -> None:
    room = await make_room(SLOW)
    requests = [ask("fine") for _ in range(3)]
    requests[index] = ask("x" * 2000)
    with pytest.raises(InvalidArgumentError, match="2007 tokens"):
        await room.inference.open_several(ANYONE, requests)
    await asyncio.sleep(0.05)
    assert room.nothing_left()


async def test_full_queue_refuses_all(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(max_num_waiting=2, step_time_s=0.01))
    with pytest.raises(ResourceExhaustedError):
        await room.inference.open_several(ANYONE, [ask("x")] * 10)
    await asyncio.sleep(0.05)
    assert room.nothing_left()


@pytest.mark.parametrize("count", [0, 4])
async def test_number_of_requests_is_bounded(make_room: MakeRoom, ask: AskFor, count: int) -> None:
    room = await make_room(inference=InferenceConfig(max_num_per_call=3))
    with pytest.raises(InvalidArgumentError, match="1 to 3") as caught:
        await room.inference.open_several(ANYONE, [ask("x")] * count)
    assert caught.value.param == "n"


async def test_failure_of_one_is_raised_at_once_and_ends_the_others(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    several = await room.inference.open_several(ANYONE, [ask("x" * 100), ask("y" * 100)])
    room.engine.abort("r-1")
    async with asyncio.timeout(0.5):
        with pytest.raises(MedleyError) as caught:
            await several.results()
    assert caught.value.code is ErrorCode.CANCELLED
    await asyncio.sleep(0.05)
    assert room.nothing_left()
    assert room.counted("medley_requests_total", code="CANCELLED") == 2


async def test_failure_of_one_is_raised_in_the_stream(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    several = await room.inference.open_several(ANYONE, [ask("x" * 100), ask("y" * 100)])
    room.engine.kill()
    with pytest.raises(MedleyError) as caught:
        async for _ in several.chunks():
            pass
    await several.aclose()
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert room.nothing_left()
    assert room.counted("medley_requests_total", code="UNAVAILABLE") == 2


async def test_closing_early_ends_all_and_lets_the_quota_go(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    caller = limited(room, max_concurrent=4)
    several = await room.inference.open_several(caller, [ask("x" * 100)] * 4)
    stream = several.chunks()
    await anext(stream)
    await several.aclose()
    await several.aclose()
    await asyncio.sleep(0.05)
    assert room.nothing_left()
    again = await room.inference.open_several(caller, [ask("x")] * 4)
    assert len(await again.results()) == 4


async def test_quota_counts_every_request_but_the_first_which_the_door_counts(room: Room, ask: AskFor) -> None:
    caller = limited(room, max_requests_per_minute=5)
    await (await room.inference.open_several(caller, [ask("x")] * 4)).results()
    with pytest.raises(ResourceExhaustedError) as caught:
        await room.inference.open_several(caller, [ask("x")] * 4)
    assert caught.value.retry_after_s == pytest.approx(12.0, abs=0.5)
    # What was refused used nothing up.
    await (await room.inference.open_several(caller, [ask("x")] * 3)).results()


async def test_call_for_more_than_a_key_may_ever_make_is_not_told_to_wait(room: Room, ask: AskFor) -> None:
    caller = limited(room, max_concurrent=2)
    with pytest.raises(ResourceExhaustedError) as caught:
        await room.inference.open_several(caller, [ask("x")] * 4)
    assert caught.value.retry_after_s is None


def test_copies_have_seeds_of_their_own(ask: AskFor) -> None:
    assert [copy.sampling.seed for copy in copies(ask(seed=MAX_SEED - 1), 3)] == [MAX_SEED - 1, MAX_SEED, 0]
    assert [copy.sampling.seed for copy in copies(ask(), 2)] == [None, None]


def test_id_that_gets_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        named_apart([GenerationRequest("r" * 127, "x")] * 2)
    assert caught.value.param == "request_id"
