"""What the vLLM engine does around a core: hold adapters, end every request once, come back after a death."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from adapters.errors import InvalidAdapterError
from server.core.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, EngineRequest
from server.engine.supervisor import BackOff
from server.engine.vllm.core import NotFiniteError
from server.engine.vllm.engine import VllmEngine, VllmEngineConfig
from tests.fixtures.scripted_core import ScriptedCore, lora, soft_prompt


class Place:
    """An engine, and the cores it launched."""

    def __init__(self) -> None:
        self.cores: list[ScriptedCore] = []
        self.launches_fail = self.loads_wait = False
        back_off = BackOff(first_s=0.01, longest_s=0.01)
        self.engine = VllmEngine(VllmEngineConfig("nowhere"), launch=self._launch, back_off=back_off)

    def _launch(self, _config: VllmEngineConfig) -> ScriptedCore:
        if self.launches_fail:
            raise InternalError("no")
        core = ScriptedCore()
        if self.loads_wait:
            core.loading.clear()
        self.cores.append(core)
        return core

    @property
    def core(self) -> ScriptedCore:
        return self.cores[-1]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    await made.engine.start()
    yield made
    await made.engine.stop()


def ask(name: str, **more: object) -> EngineRequest:
    return EngineRequest(name, (5, 6, 7), SamplingParams(max_new_tokens=4), **more)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until_alive(engine: VllmEngine) -> None:
    async with asyncio.timeout(5):
        while not engine.stats().alive:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def read(outputs: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in outputs]


async def test_submit_hands_over_with_adapters_and_delivers_until_the_end(place: Place) -> None:
    outputs = place.engine.submit(ask("a", weight_adapter=lora("x"), soft_prompt=soft_prompt("y")))
    async with asyncio.timeout(5):
        while not place.core.added:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    handover = place.core.added["a"]
    assert (handover.lora, handover.soft_prompt) == ("x", "rows of y")
    assert handover.held_s > 0
    assert place.engine.stats().num_waiting == 1
    place.core.put("a", 8)
    assert place.engine.stats().num_running == 1
    place.core.put("a", 9, finish_reason=FinishReason.LENGTH)
    assert [output.token_ids for output in await read(outputs)] == [(8,), (9,)]
    stats = place.engine.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_generated_tokens) == (0, 0, 2)
    assert (stats.resident, stats.num_adapter_loads) == (("x", "y"), 2)


async def test_submit_beyond_limits_is_refused(place: Place) -> None:
    for tokens, problem in (((), "empty"), ((1,) * 64, "no room"), ((-1,), "vocabulary"), ((999_999,), "vocabulary")):
        with pytest.raises(InvalidArgumentError, match=problem):
            place.engine.submit(EngineRequest("a", tokens, SamplingParams(max_new_tokens=1)))
    with pytest.raises(InvalidArgumentError, match="new tokens"):
        place.engine.submit(EngineRequest("a", (5,), SamplingParams(max_new_tokens=64)))
    with pytest.raises(InvalidArgumentError, match="no room"):
        place.engine.submit(EngineRequest("a", (5,) * 62, SamplingParams(max_new_tokens=1), None, soft_prompt("y")))
    assert place.core.said == []


async def test_submit_full_queue_or_id_in_flight_is_refused(place: Place) -> None:
    accepted = [place.engine.submit(ask(str(number))) for number in range(5)]
    with pytest.raises(AlreadyExistsError):
        place.engine.submit(ask("0"))
    with pytest.raises(ResourceExhaustedError):
        place.engine.submit(ask("5"))
    await accepted[0].aclose()
    place.engine.submit(ask("0"))


async def test_submit_refused_by_the_core_or_unloadable_ends_with_the_reason(place: Place) -> None:
    place.core.refusal = InvalidArgumentError("bad grammar", param="grammar")
    (only,) = await read(place.engine.submit(ask("a")))
    assert (only.finish_reason, only.error) == (FinishReason.ERROR, place.core.refusal)
    place.core.refusal = KeyError()
    (only,) = await read(place.engine.submit(ask("b")))
    assert isinstance(only.error, InternalError)
    (only,) = await read(place.engine.submit(ask("c", weight_adapter=lora("broken"))))
    assert (only.finish_reason, type(only.error)) == (FinishReason.ERROR, InvalidArgumentError)
    assert place.engine.stats().resident == ()


async def test_abort_or_early_close_ends_at_once_and_frees_the_sequence_before_the_adapter(place: Place) -> None:
    outputs = {name: place.engine.submit(ask(name, weight_adapter=lora(name))) for name in "abc"}
    await settle()
    assert place.core.said == ["load a", "load b", "add a", "add b"]
    place.engine.abort("a")
    place.engine.abort("unknown")
    assert [output.finish_reason for output in await read(outputs["a"])] == [FinishReason.ABORT]
    await settle()
    assert place.core.said[4:] == ["abort a", "unload a", "load c", "add c"]
    await outputs["b"].aclose()
    await outputs["b"].aclose()
    assert await read(outputs["b"]) == []
    await settle()
    assert place.core.said[-1] == "abort b"
    assert place.engine.stats().num_waiting == 1


async def test_close_after_the_end_but_before_it_was_read_does_nothing(place: Place) -> None:
    outputs = place.engine.submit(ask("a"))
    again = place.engine.submit(ask("b"))
    place.engine.abort("a")
    await outputs.aclose()
    place.engine.abort("a")
    assert place.engine.stats().num_waiting == 1
    await again.aclose()


async def test_abort_while_an_adapter_loads_never_reaches_the_core(place: Place) -> None:
    place.core.loading.clear()
    outputs = place.engine.submit(ask("a", weight_adapter=lora("x")))
    await settle()
    place.engine.abort("a")
    place.core.loading.set()
    await settle()
    assert [output.finish_reason for output in await read(outputs)] == [FinishReason.ABORT]
    assert place.core.said == ["load x"]
    await place.engine.pin_adapter(lora("y"))
    await place.engine.pin_adapter(lora("z"))
    assert place.engine.stats().resident == ("y", "z")


async def test_deadline_ends_the_request_also_before_the_core_has_it(place: Place) -> None:
    place.core.loading.clear()
    deadline_s = time.monotonic() + 0.02
    requests = [ask("a", deadline_s=deadline_s), ask("b", deadline_s=deadline_s, weight_adapter=lora("x"))]
    for (only,) in await asyncio.gather(*(read(place.engine.submit(request)) for request in requests)):
        assert (only.finish_reason, type(only.error)) == (FinishReason.DEADLINE, DeadlineExceededError)
    place.core.loading.set()
    await settle()
    assert place.core.said == ["add a", "load x", "abort a"]


async def test_death_ends_every_request_once_and_comes_back_with_pinned_adapters(place: Place) -> None:
    await place.engine.pin_adapter(lora("kept"))
    await place.engine.pin_adapter(soft_prompt("rows"))
    outputs = [place.engine.submit(ask(str(number), weight_adapter=lora("x"))) for number in range(3)]
    await settle()
    place.core.put("0", 8)
    place.cores[0].die()
    found = await asyncio.gather(*(read(each) for each in outputs))
    assert [[output.finish_reason for output in each] for each in found] == [
        [None, FinishReason.ERROR],
        [FinishReason.ERROR],
        [FinishReason.ERROR],
    ]
    assert {type(each[-1].error) for each in found} == {UnavailableError}
    stats = place.engine.stats()
    assert (stats.alive, stats.is_restarting, stats.resident) == (False, True, ("rows",))
    with pytest.raises(UnavailableError, match="started again"):
        place.engine.submit(ask("late"))
    await until_alive(place.engine)
    assert place.cores[0].is_shut_down
    assert place.core.said == ["load kept"]
    assert place.engine.stats().resident == ("kept", "rows")
    outputs = place.engine.submit(ask("0", weight_adapter=lora("x")))
    await settle()
    place.core.put("0", 9, finish_reason=FinishReason.STOP)
    assert [output.token_ids for output in await read(outputs)] == [(9,)]


async def test_death_while_loading_pinning_or_checking_leaves_nobody_waiting(place: Place) -> None:
    place.core.loading.clear()
    outputs = place.engine.submit(ask("a", weight_adapter=lora("x")))
    pinning = asyncio.create_task(place.engine.pin_adapter(lora("y")))
    checking = asyncio.create_task(place.engine.check_adapter(lora("z")))
    await asyncio.sleep(0.02)
    place.core.die()
    for waiting in (pinning, checking):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(waiting, 5)
    assert [type(output.error) for output in await read(outputs)] == [UnavailableError]


async def test_death_again_while_pinned_adapters_come_back_keeps_them_for_the_next(place: Place) -> None:
    await place.engine.pin_adapter(lora("kept"))
    place.loads_wait = True
    place.core.die()
    async with asyncio.timeout(5):
        while len(place.cores) < 2 or not place.core.said:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert place.engine.stats().alive is False
    place.loads_wait = False
    place.core.die()
    await until_alive(place.engine)
    assert (len(place.cores), place.engine.stats().resident) == (3, ("kept",))


async def test_check_adapter_says_whether_files_and_logits_are_sound(place: Place) -> None:
    async def answer(**last: object) -> None:
        async with asyncio.timeout(5):
            while not place.core.added:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        (request_id,) = place.core.added
        place.core.put(request_id, **last)
        await place.core.abort(next(iter(place.core.added.values())).key)

    def sound(logprob: float) -> dict[str, object]:
        return {"finish_reason": FinishReason.LENGTH, "logprobs": (TokenLogprob(3, logprob),)}

    await asyncio.gather(place.engine.check_adapter(lora("x")), answer(**sound(-1.0)))
    await asyncio.gather(place.engine.check_adapter(soft_prompt("y")), answer(**sound(-1.0)))
    with pytest.raises(InvalidAdapterError, match="not finite"):
        await asyncio.gather(place.engine.check_adapter(lora("x")), answer(**sound(float("nan"))))
    failure = {"finish_reason": FinishReason.ERROR, "error": NotFiniteError("x")}
    with pytest.raises(InvalidAdapterError, match="not finite"):
        await asyncio.gather(place.engine.check_adapter(lora("x")), answer(**failure))
    with pytest.raises(InvalidAdapterError, match="broken"):
        await place.engine.check_adapter(lora("broken"))
    assert place.engine.stats().num_running == 0


async def test_drain_waits_for_requests_then_aborts_them_and_refuses_new_ones(place: Place) -> None:
    outputs = [place.engine.submit(ask(name)) for name in "ab"]
    await settle()
    draining = asyncio.create_task(place.engine.drain(0.05))
    await settle()
    with pytest.raises(UnavailableError, match="draining"):
        place.engine.submit(ask("c"))
    place.core.put("a", 8, finish_reason=FinishReason.STOP)
    await draining
    assert [output.finish_reason for output in await read(outputs[0])] == [FinishReason.STOP]
    assert [output.finish_reason for output in await read(outputs[1])] == [FinishReason.ABORT]


async def test_stop_ends_every_request_and_the_core_also_while_it_is_down(place: Place) -> None:
    outputs = place.engine.submit(ask("a"))
    await place.engine.stop()
    assert [output.finish_reason for output in await read(outputs)] == [FinishReason.ABORT]
    assert place.core.is_shut_down
    stats = place.engine.stats()
    assert (stats.alive, stats.is_restarting) == (False, False)
    with pytest.raises(UnavailableError, match="stopped"):
        place.engine.submit(ask("b"))
    down = Place()
    await down.engine.start()
    down.launches_fail = True
    down.core.die()
    await asyncio.sleep(0.05)
    assert down.engine.stats().is_restarting
    await asyncio.wait_for(down.engine.stop(), 5)
    assert down.engine.stats().is_restarting is False
