import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.errors import InvalidAdapterError
from adapters.manifest import AdapterKind
from server.core.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineOutput, EngineRequest, ResolvedAdapter
from server.engine.fake import FakeEngine, FakeEngineConfig

LORA = ResolvedAdapter("a1" * 32, AdapterKind.LORA, Path("lora"), rank=4)
OTHER_LORA = ResolvedAdapter("b2" * 32, AdapterKind.LORA, Path("other"), rank=4)
PROMPT = ResolvedAdapter("c3" * 32, AdapterKind.PROMPT, Path("prompt"), num_virtual_tokens=5)
SLOW = FakeEngineConfig(step_time_s=0.01)


@pytest.fixture
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(getattr(request, "param", FakeEngineConfig()))
    await engine.start()
    yield engine
    await engine.stop()


def request(
    request_id: str = "r", *adapters: ResolvedAdapter, max_new_tokens: int = 100, deadline_s: float | None = None
) -> EngineRequest:
    by_kind = {adapter.kind: adapter for adapter in adapters}
    return EngineRequest(
        request_id,
        (*range(10, 40), 1),
        SamplingParams(max_new_tokens=max_new_tokens),
        by_kind.get(AdapterKind.LORA),
        by_kind.get(AdapterKind.PROMPT),
        deadline_s,
    )


async def outputs(engine: Engine, *args: EngineRequest) -> list[list[EngineOutput]]:
    async def collect(iterator: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
        return [output async for output in iterator]

    return await asyncio.gather(*(collect(engine.submit(each)) for each in args))


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_answer_repeats_exactly_and_differs_by_adapter(engine: FakeEngine) -> None:
    a, b, c, d = await outputs(engine, request("a"), request("b"), request("c", LORA), request("d", LORA, PROMPT))
    assert tokens(a) == tokens(b) == list(range(10, 40))
    assert len({tuple(tokens(answer)) for answer in (a, c, d)}) == 3


async def test_answer_has_one_terminal_output_and_it_is_the_last(engine: FakeEngine) -> None:
    [answer] = await outputs(engine, request(max_new_tokens=7))
    reasons = [output.finish_reason for output in answer]
    assert reasons == [None] * 6 + [FinishReason.LENGTH]
    assert answer[0].queue_s is not None
    assert len(tokens(answer)) == 7


async def test_prompt_over_the_limit_fails_alone(engine: FakeEngine) -> None:
    long = EngineRequest("long", tuple([10] * 2000), SamplingParams())
    bad, good = await outputs(engine, long, request("good"))
    assert isinstance(bad[-1].error, InvalidArgumentError)
    assert good[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("engine", [SLOW], indirect=True)
async def test_abort_ends_the_row_with_abort(engine: FakeEngine) -> None:
    stream = engine.submit(request())
    await anext(stream)
    engine.abort("r")
    engine.abort("unknown")
    rest = [output async for output in stream]
    assert rest[-1].finish_reason is FinishReason.ABORT
    assert len(rest) < 5


@pytest.mark.parametrize("engine", [SLOW], indirect=True)
async def test_closing_the_outputs_early_frees_the_row(engine: FakeEngine) -> None:
    stream = engine.submit(request())
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.05)
    assert engine.stats().num_running == 0
    assert [output async for output in stream] == []


@pytest.mark.parametrize("engine", [SLOW], indirect=True)
async def test_deadline_ends_the_row_with_deadline(engine: FakeEngine) -> None:
    [answer] = await outputs(engine, request(deadline_s=time.monotonic() + 0.05))
    assert answer[-1].finish_reason is FinishReason.DEADLINE
    assert isinstance(answer[-1].error, DeadlineExceededError)
    assert 0 < len(tokens(answer)) < 30


@pytest.mark.parametrize("engine", [FakeEngineConfig(max_num_seqs=1, max_num_waiting=2)], indirect=True)
async def test_full_queue_refuses_and_recovers(engine: FakeEngine) -> None:
    streams = [engine.submit(request(f"r{number}")) for number in range(2)]
    with pytest.raises(ResourceExhaustedError):
        engine.submit(request("r2"))
    for stream in streams:
        assert [output async for output in stream][-1].finish_reason is FinishReason.STOP
    await outputs(engine, request("r3"))


async def test_request_id_in_flight_is_refused(engine: FakeEngine) -> None:
    engine.submit(request("same"))
    with pytest.raises(AlreadyExistsError):
        engine.submit(request("same"))


@pytest.mark.parametrize("engine", [FakeEngineConfig(max_loras=1)], indirect=True)
async def test_adapter_slots_are_loaded_kept_and_evicted(engine: FakeEngine) -> None:
    await outputs(engine, request("a", LORA), request("b", LORA), request("c", OTHER_LORA))
    stats = engine.stats()
    assert (stats.num_adapter_loads, stats.num_adapter_evictions) == (2, 1)
    assert stats.resident == (OTHER_LORA.digest,)


@pytest.mark.parametrize("engine", [FakeEngineConfig(max_loras=1)], indirect=True)
async def test_pinned_adapter_keeps_its_slot(engine: FakeEngine) -> None:
    await engine.pin_adapter(LORA)
    with pytest.raises(ResourceExhaustedError):
        await engine.pin_adapter(OTHER_LORA)
    engine.unpin_adapter(LORA.digest)
    await engine.pin_adapter(OTHER_LORA)


async def test_check_adapter_refuses_a_folder_without_weights(engine: FakeEngine, tmp_path: Path) -> None:
    adapter = ResolvedAdapter("d4" * 32, AdapterKind.LORA, tmp_path)
    with pytest.raises(InvalidAdapterError):
        await engine.check_adapter(adapter)
    (tmp_path / "adapter_model.safetensors").touch()
    await engine.check_adapter(adapter)


@pytest.mark.parametrize("engine", [SLOW], indirect=True)
async def test_drain_finishes_running_requests_and_refuses_new_ones(engine: FakeEngine) -> None:
    stream = engine.submit(request(max_new_tokens=5))
    draining = asyncio.create_task(engine.drain(5))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        engine.submit(request("late"))
    await draining
    assert [output async for output in stream][-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("engine", [SLOW], indirect=True)
async def test_drain_aborts_what_outlives_the_grace(engine: FakeEngine) -> None:
    stream = engine.submit(request())
    await engine.drain(0.03)
    assert [output async for output in stream][-1].finish_reason is FinishReason.ABORT


@pytest.mark.parametrize(("end", "reason"), [("kill", FinishReason.ERROR), ("stop", FinishReason.ABORT)])
async def test_every_open_request_ends_when_the_engine_does(engine: FakeEngine, end: str, reason: FinishReason) -> None:
    streams = [engine.submit(request(f"r{number}")) for number in range(20)]
    if end == "kill":
        engine.kill()
    else:
        await engine.stop()
    for stream in streams:
        answer = [output async for output in stream]
        assert [output.finish_reason for output in answer if output.finish_reason] == [reason]
        assert isinstance(answer[-1].error, UnavailableError)
    assert not engine.stats().alive
    with pytest.raises(UnavailableError):
        engine.submit(request("late"))


def sampled(request_id: str = "r", **params: object) -> EngineRequest:
    return EngineRequest(request_id, (10, 11, 12, 1), SamplingParams(**params))  # type: ignore[arg-type]


async def test_answer_that_ignores_its_end_goes_on_behind_it(engine: FakeEngine) -> None:
    [answer] = await outputs(engine, sampled(ignore_eos=True, max_new_tokens=9))
    assert tokens(answer) == [10, 11, 12, 1, 10, 11, 12, 1, 10]
    assert answer[-1].finish_reason is FinishReason.LENGTH


async def test_answer_has_the_least_tokens_asked_for(engine: FakeEngine) -> None:
    [answer] = await outputs(engine, sampled(min_new_tokens=5, max_new_tokens=9))
    assert tokens(answer) == [10, 11, 12, 10, 11]
    assert answer[-1].finish_reason is FinishReason.STOP


async def test_answer_ends_before_a_stop_token_once_it_is_long_enough(engine: FakeEngine) -> None:
    early, late = await outputs(
        engine, sampled("a", stop_token_ids=(11,)), sampled("b", stop_token_ids=(11,), min_new_tokens=4)
    )
    assert (tokens(early), early[-1].finish_reason) == ([10], FinishReason.STOP)
    assert (tokens(late), late[-1].finish_reason) == ([10, 11, 12, 10], FinishReason.STOP)


async def test_prompt_logprobs_come_with_the_first_output_and_leave_out_the_first_token(engine: FakeEngine) -> None:
    [answer] = await outputs(engine, sampled(num_prompt_logprobs=2))
    assert [entry and (entry.token_id, len(entry.top)) for entry in answer[0].prompt_logprobs] == [
        None,
        (11, 2),
        (12, 2),
        (1, 2),
    ]
    assert all(not output.prompt_logprobs for output in answer[1:])
