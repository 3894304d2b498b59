"""What every engine promises (server/engine/base.py), checked on each of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from adapters.errors import InvalidAdapterError
from server.core.errors import AlreadyExistsError, ResourceExhaustedError, UnavailableError
from server.core.outputs import FinishReason
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineOutput, EngineRequest, Feature, ResolvedAdapter
from server.engine.fake import FakeEngine, FakeEngineConfig

# One event loop for all: the vLLM that the engines share lives on it.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = tuple(range(3, 253))
NEED_A_FRESH_ENGINE = {
    "test_submit_adapter_changes_the_answer_and_becomes_resident",
    "test_drain_lets_requests_finish_and_refuses_new_ones",
    "test_drain_grace_over_aborts_what_is_left",
    "test_pin_adapter_stays_through_evictions",
}
LIMITS = {"max_num_waiting": 3, "max_new_tokens": 400, "max_loras": 2, "max_soft_prompts": 2}


@dataclass(frozen=True)
class Place:
    """A way to make the engine under test, four LoRAs for its base, and whether a start takes seconds."""

    make: Callable[..., Engine]
    loras: tuple[ResolvedAdapter, ...]
    is_slow_to_start: bool = False


def t5_place(folder: Path, make: Callable[..., Engine], *, is_slow_to_start: bool = False) -> Place:
    from tests.fixtures.t5_models import resolved

    names = ("qv-2", "cross-4", "all-linear-8", "attention-4")
    loras = tuple(resolved(folder / "adapters", name) for name in names)
    return Place(make, loras, is_slow_to_start=is_slow_to_start)


def write_t5_folders(folder: Path) -> Path:
    from tests.fixtures.t5_models import LORAS, TINY, write_loras, write_t5

    base = write_t5(folder / "base", TINY, is_tied=False, seed=1)
    write_loras(folder / "adapters", base, LORAS, seed=2)
    return base


def fake_place(folder: Path) -> Iterator[Place]:
    def make(**limits: int) -> Engine:
        return FakeEngine(FakeEngineConfig(step_time_s=0.001, **limits))

    write_t5_folders(folder)
    yield t5_place(folder, make)


def fake_process_place(folder: Path) -> Iterator[Place]:
    from server.engine.process.engine import ProcessEngine

    def make(**limits: int) -> Engine:
        return ProcessEngine(partial(FakeEngine, FakeEngineConfig(step_time_s=0.001, **limits)))

    write_t5_folders(folder)
    yield t5_place(folder, make)


def native_process_place(folder: Path) -> Iterator[Place]:
    from server.engine.factory import make_native
    from server.engine.native.config import NativeEngineConfig
    from server.engine.process.engine import ProcessEngine

    def make(**limits: int) -> Engine:
        config = NativeEngineConfig(str(base), device="cpu", dtype="float32", num_threads=1, **limits)
        return ProcessEngine(partial(make_native, config))

    base = write_t5_folders(folder)
    yield t5_place(folder, make, is_slow_to_start=True)


def native_place(folder: Path) -> Iterator[Place]:
    from server.engine.native.engine import NativeEngine, NativeEngineConfig

    def make(**limits: int) -> Engine:
        return NativeEngine(NativeEngineConfig(str(base), device="cpu", dtype="float32", num_threads=1, **limits))

    base = write_t5_folders(folder)
    yield t5_place(folder, make)


def vllm_place(folder: Path) -> Iterator[Place]:
    pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")
    from server.engine.vllm.engine import VllmEngine, VllmEngineConfig
    from tests.fixtures.causal_models import LORAS, resolved, write_causal_loras, write_llama
    from tests.fixtures.shared_vllm import SharedVllm

    def make(**limits: int) -> Engine:
        return VllmEngine(VllmEngineConfig(str(base), **limits), launch=shared.launch)

    base = write_llama(folder / "base", seed=1)
    write_causal_loras(folder / "adapters", base, seed=2)
    arguments = {"enforce_eager": True}
    shared = SharedVllm(VllmEngineConfig(str(base), max_num_seqs=2, max_loras=2, arguments=arguments))
    yield Place(make, tuple(resolved(folder / "adapters", name) for name in LORAS))
    shared.shutdown()


PLACES = {
    "fake": fake_place,
    "fake in its own process": fake_process_place,
    "native": native_place,
    "native in its own process": native_process_place,
    "vllm": vllm_place,
}
MARKS = {
    "native": [pytest.mark.torch],
    "native in its own process": [pytest.mark.torch],
    # What vLLM imports warns of what it imports.
    "vllm": [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("default")],
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, [])) for name in PLACES])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    pytest.importorskip("peft", reason="the adapters are made with PEFT")
    yield from PLACES[request.param](tmp_path_factory.mktemp("engines"))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lasting() -> AsyncIterator[list[Engine]]:
    """The engine of all tests that leave it as it was, where a start takes seconds."""
    made: list[Engine] = []
    yield made
    for engine in made:
        await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(place: Place, lasting: list[Engine], request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    may_last = place.is_slow_to_start and request.function.__name__ not in NEED_A_FRESH_ENGINE
    if may_last and lasting:
        yield lasting[0]
        return
    made = place.make(**LIMITS, max_num_seqs=2)
    await made.start()
    if may_last:
        lasting.append(made)
    yield made
    if not may_last:
        await made.stop()


def ask(name: str, max_new_tokens: int = 4, **fields: object) -> EngineRequest:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    return EngineRequest(name, PROMPT, params, **fields)


async def read(outputs: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in outputs]


async def reason_of(outputs: AsyncIterator[EngineOutput]) -> FinishReason | None:
    """Read to the end; the reason, after checking that there is exactly one and that it is last."""
    found = await read(outputs)
    assert [output.finish_reason is not None for output in found] == [False] * (len(found) - 1) + [True]
    return found[-1].finish_reason


async def test_submit_ends_with_one_terminal_output_and_says_queue_time_first(engine: Engine) -> None:
    outputs = await read(engine.submit(ask("a", 4)))
    assert [output.finish_reason for output in outputs] == [None, None, None, FinishReason.LENGTH]
    assert [output.queue_s is not None for output in outputs] == [True, False, False, False]
    assert sum(len(output.token_ids) for output in outputs) == 4


async def test_submit_same_request_twice_gives_the_same_tokens(engine: Engine) -> None:
    first, second = await asyncio.gather(*(read(engine.submit(ask(name, 8))) for name in "ab"))
    assert [output.token_ids for output in first] == [output.token_ids for output in second]


async def test_submit_adapter_changes_the_answer_and_becomes_resident(engine: Engine, place: Place) -> None:
    plain = await read(engine.submit(ask("a", 8)))
    adapted = await read(engine.submit(ask("b", 8, weight_adapter=place.loras[0])))
    assert [output.token_ids for output in plain] != [output.token_ids for output in adapted]
    assert engine.stats().resident == (place.loras[0].digest,)


async def test_submit_more_adapters_than_slots_serves_all(engine: Engine, place: Place) -> None:
    requests = [ask(str(number), 3, weight_adapter=place.loras[number]) for number in range(3)]
    answers = [read(engine.submit(request)) for request in requests]
    assert [len(answer) for answer in await asyncio.gather(*answers)] == [3, 3, 3]
    assert engine.stats().num_adapter_evictions > 0


async def test_submit_id_in_flight_is_refused_until_it_ended(engine: Engine) -> None:
    outputs = engine.submit(ask("a", 50))
    with pytest.raises(AlreadyExistsError):
        engine.submit(ask("a"))
    await read(outputs)
    assert await reason_of(engine.submit(ask("a"))) is FinishReason.LENGTH


async def test_submit_full_queue_is_refused_and_the_accepted_are_served(engine: Engine) -> None:
    accepted: list[AsyncIterator[EngineOutput]] = []

    def flood() -> None:
        for number in range(10):
            accepted.append(engine.submit(ask(str(number), 100)))  # noqa: PERF401

    with pytest.raises(ResourceExhaustedError):
        flood()
    assert 3 <= len(accepted) <= 5
    assert {await reason_of(outputs) for outputs in accepted} == {FinishReason.LENGTH}


async def test_abort_running_and_waiting_requests_end_with_abort(engine: Engine) -> None:
    outputs = [engine.submit(ask(str(number), 400)) for number in range(3)]
    await anext(outputs[0])
    for number in (0, 2):
        engine.abort(str(number))
    engine.abort("unknown")
    assert [await reason_of(outputs[number]) for number in (0, 2)] == [FinishReason.ABORT] * 2
    engine.abort("1")
    assert await reason_of(outputs[1]) is FinishReason.ABORT


async def test_close_early_frees_the_row_and_the_id(engine: Engine) -> None:
    outputs = engine.submit(ask("a", 400))
    await anext(outputs)
    await outputs.aclose()
    await outputs.aclose()
    assert await read(outputs) == []
    async with asyncio.timeout(5):
        while engine.stats().num_running:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_deadline_running_and_waiting_requests_end_with_deadline(engine: Engine) -> None:
    deadline_s = time.monotonic() + 0.05
    requests = [ask(str(number), 400, deadline_s=deadline_s) for number in range(3)]
    reasons = await asyncio.gather(*(reason_of(engine.submit(request)) for request in requests))
    assert reasons == [FinishReason.DEADLINE] * 3


async def test_request_of_an_earlier_class_starts_before_those_that_wait(engine: Engine) -> None:
    require(engine, Feature.PRIORITY)
    running = [engine.submit(ask(f"running-{number}", 400)) for number in range(2)]
    for outputs in running:
        await anext(outputs)
    ended: list[str] = []

    async def follow(name: str, outputs: AsyncIterator[EngineOutput]) -> None:
        await read(outputs)
        ended.append(name)

    waiting = {name: engine.submit(ask(name, 30, priority=priority)) for name, priority in (("later", 1), ("usual", 0))}
    waiting["earlier"] = engine.submit(ask("earlier", 30, priority=-1))
    engine.abort("running-0")
    await asyncio.gather(*(follow(name, outputs) for name, outputs in waiting.items()))
    assert ended == ["earlier", "usual", "later"]
    engine.abort("running-1")
    assert await reason_of(running[1]) is FinishReason.ABORT


async def test_drain_lets_requests_finish_and_refuses_new_ones(engine: Engine) -> None:
    outputs = engine.submit(ask("a", 20))
    await engine.drain(grace_s=30)
    assert await reason_of(outputs) is FinishReason.LENGTH
    with pytest.raises(UnavailableError):
        engine.submit(ask("b"))


async def test_drain_grace_over_aborts_what_is_left(engine: Engine) -> None:
    outputs = [engine.submit(ask(str(number), 400)) for number in range(3)]
    await engine.drain(grace_s=0.01)
    assert [await reason_of(each) for each in outputs] == [FinishReason.ABORT] * 3


async def test_stop_gives_every_open_request_its_end(place: Place) -> None:
    made = place.make(**LIMITS, max_num_seqs=1)
    await made.start()
    outputs = [made.submit(ask(str(number), 400)) for number in range(3)]
    await anext(outputs[0])
    await made.stop()
    assert [await reason_of(each) for each in outputs] == [FinishReason.ABORT] * 3
    assert made.stats().alive is False
    with pytest.raises(UnavailableError):
        made.submit(ask("late"))


async def test_check_adapter_sound_one_passes_and_missing_files_do_not(
    engine: Engine, place: Place, tmp_path: Path
) -> None:
    await engine.check_adapter(place.loras[0])
    missing = ResolvedAdapter("00", place.loras[0].kind, tmp_path, rank=2)
    with pytest.raises(InvalidAdapterError):
        await engine.check_adapter(missing)


async def test_pin_adapter_stays_through_evictions(engine: Engine, place: Place) -> None:
    first, second, third, fourth = place.loras
    await engine.pin_adapter(first)
    for adapter in (second, third, fourth):
        await read(engine.submit(ask(adapter.digest, 1, weight_adapter=adapter)))
    assert first.digest in engine.stats().resident
    await engine.pin_adapter(second)
    with pytest.raises(ResourceExhaustedError):
        await engine.pin_adapter(third)
    engine.unpin_adapter(first.digest)
    await engine.pin_adapter(third)


async def test_info_repeats_the_limits(engine: Engine) -> None:
    assert {name: getattr(engine.info, name) for name in LIMITS} == LIMITS
    assert engine.info.base.linear_shapes


def wanting(name: str, **params: object) -> EngineRequest:
    return EngineRequest(name, PROMPT, SamplingParams(**params))  # type: ignore[arg-type]


async def answer_of(engine: Engine, request: EngineRequest) -> tuple[list[int], FinishReason | None]:
    outputs = await read(engine.submit(request))
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


def require(engine: Engine, *features: Feature) -> None:
    if missing := set(features) - engine.info.features:
        pytest.skip(f"the {engine.info.name} engine has no {', '.join(missing)}")


async def test_answer_that_ignores_its_end_has_every_token_asked_for(engine: Engine) -> None:
    require(engine, Feature.IGNORE_EOS)
    found, reason = await answer_of(engine, wanting("a", ignore_eos=True, max_new_tokens=260))
    assert (len(found), reason) == (260, FinishReason.LENGTH)


async def test_stop_token_ends_the_answer_and_is_no_part_of_it(engine: Engine) -> None:
    require(engine, Feature.STOP_TOKEN_IDS, Feature.IGNORE_EOS)
    whole, _ = await answer_of(engine, wanting("a", ignore_eos=True, max_new_tokens=8))
    stop = whole[5]
    found = await answer_of(engine, wanting("b", ignore_eos=True, max_new_tokens=8, stop_token_ids=(stop,)))
    assert found == (whole[: whole.index(stop)], FinishReason.STOP)


async def test_answer_does_not_end_before_its_least_tokens(engine: Engine) -> None:
    require(engine, Feature.STOP_TOKEN_IDS, Feature.MIN_NEW_TOKENS, Feature.IGNORE_EOS)
    whole, _ = await answer_of(engine, wanting("a", ignore_eos=True, max_new_tokens=8))
    found, _ = await answer_of(
        engine, wanting("b", max_new_tokens=8, min_new_tokens=6, stop_token_ids=(whole[0], whole[1]))
    )
    assert 6 <= len(found) <= 8


async def test_prompt_logprobs_come_first_with_an_entry_per_token(engine: Engine) -> None:
    require(engine, Feature.PROMPT_LOGPROBS)
    first, *others = await read(engine.submit(wanting("a", max_new_tokens=3, num_prompt_logprobs=1)))
    assert first.prompt_logprobs[0] is None
    assert [entry.token_id for entry in first.prompt_logprobs if entry] == list(PROMPT[1:])
    assert not any(output.prompt_logprobs for output in others)
