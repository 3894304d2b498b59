"""Opening and running requests: refusals, exactly one terminal chunk, nothing left behind."""

import asyncio
import threading
import time

import pytest

from adapters.errors import AdapterError, StoreError
from server.core.errors import ErrorCode, MedleyError, PermissionDeniedError, UnavailableError, code_of
from server.core.outputs import FinishReason, GenerationChunk
from server.core.principal import Principal, Scope
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, Feature
from server.engine.fake import FakeEngineConfig
from server.engine.streams import OutputStream
from server.engine.waiting import gave_way
from server.service.health import Phase
from server.service.inference import InferenceConfig
from tests.fixtures.peft_files import lora_files, prefix_files, prompt_files
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room

SLOW = FakeEngineConfig(step_time_s=0.01)


async def chunks_of(room: Room, request: object) -> list[GenerationChunk]:
    generation = await room.open(request)  # type: ignore[arg-type]
    try:
        return [chunk async for chunk in generation]
    finally:
        await generation.aclose()


async def refused(room: Room, request: object) -> tuple[ErrorCode, str]:
    with pytest.raises((MedleyError, AdapterError)) as caught:
        await room.open(request)  # type: ignore[arg-type]
    assert room.nothing_left()
    assert room.counted("medley_requests_total", code=code_of(caught.value)) == 1
    return code_of(caught.value), str(caught.value)


def terminals(chunks: list[GenerationChunk]) -> list[FinishReason]:
    return [chunk.finish_reason for chunk in chunks if chunk.finish_reason]


@pytest.mark.parametrize("text", ["", "  \n"])
async def test_open_empty_text_is_an_invalid_argument(room: Room, ask: AskFor, text: str) -> None:
    assert await refused(room, ask(text)) == (ErrorCode.INVALID_ARGUMENT, "the text is empty")


async def test_open_text_too_long_names_both_numbers(room: Room, ask: AskFor) -> None:
    code, message = await refused(room, ask("x" * 2000))
    assert code is ErrorCode.INVALID_ARGUMENT
    assert message == "the prompt has 2007 tokens; at most 1024 fit"


async def test_open_text_of_too_many_characters_is_refused_unread(room: Room, ask: AskFor) -> None:
    code, message = await refused(room, ask("x" * 200_001))
    assert (code, "200001 characters" in message) == (ErrorCode.INVALID_ARGUMENT, True)


async def test_open_soft_prompt_counts_towards_the_length(room: Room, ask: AskFor) -> None:
    await room.upload(prompt_files(num_virtual_tokens=20), "prompt")
    fits = "x" * (1024 - len("base: ") - 1)
    await (await room.open(ask(fits))).aclose()
    await asyncio.sleep(0.01)
    code, message = await refused_later(room, ask(fits, adapters=("prompt",)))
    assert (code, message) == (
        ErrorCode.INVALID_ARGUMENT,
        "the prompt has 1024 tokens and 20 virtual tokens; at most 1024 fit",
    )


async def test_open_prefix_takes_nothing_of_the_length(room: Room, ask: AskFor) -> None:
    await room.upload(prefix_files(num_virtual_tokens=20), "prefix")
    await (await room.open(ask("x" * (1024 - len("base: ") - 1), adapters=("prefix",)))).aclose()


async def refused_later(room: Room, request: object) -> tuple[ErrorCode, str]:
    with pytest.raises((MedleyError, AdapterError)) as caught:
        await room.open(request)  # type: ignore[arg-type]
    assert room.nothing_left()
    return code_of(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"text": "lone \ud800 surrogate"}, ErrorCode.INVALID_ARGUMENT),
        ({"max_new_tokens": 257}, ErrorCode.INVALID_ARGUMENT),
        ({"references": ("good", " ")}, ErrorCode.INVALID_ARGUMENT),
        ({"references": ("x" * 20_001,)}, ErrorCode.INVALID_ARGUMENT),
        ({"adapters": ("nobody",)}, ErrorCode.NOT_FOUND),
        ({"adapters": ("one:9",)}, ErrorCode.NOT_FOUND),
        ({"adapters": ("one@canary",)}, ErrorCode.NOT_FOUND),
        ({"adapters": ("No Name",)}, ErrorCode.INVALID_ARGUMENT),
        ({"adapters": ("one", "one")}, ErrorCode.INVALID_ARGUMENT),
        ({"adapters": ("one", "two")}, ErrorCode.INVALID_ARGUMENT),
        ({"adapters": ("one", "soft", "two")}, ErrorCode.INVALID_ARGUMENT),
        ({"deadline_s": 0.0}, ErrorCode.DEADLINE_EXCEEDED),
    ],
)
async def test_open_refuses_with_the_right_code(
    room: Room, ask: AskFor, options: dict[str, object], code: ErrorCode
) -> None:
    await room.upload(lora_files(1), "one")
    await room.upload(lora_files(2), "two")
    await room.upload(prompt_files(), "soft")
    assert (await refused(room, ask(**options)))[0] is code


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_open_while_not_serving_is_unavailable(room: Room, ask: AskFor, phase: Phase) -> None:
    room.health.enter(phase)
    assert (await refused(room, ask()))[0] is ErrorCode.UNAVAILABLE


async def test_open_on_a_dead_engine_is_unavailable(room: Room, ask: AskFor) -> None:
    room.engine.kill()
    assert (await refused(room, ask()))[0] is ErrorCode.UNAVAILABLE


async def test_open_with_a_full_queue_is_exhausted_and_recovers(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(max_num_waiting=2, step_time_s=0.005))
    results = await asyncio.gather(
        *(room.open(ask(request_id=f"r{number}")) for number in range(20)), return_exceptions=True
    )
    codes = {code_of(result) for result in results if isinstance(result, Exception)}
    assert codes == {ErrorCode.RESOURCE_EXHAUSTED}
    for result in results:
        if not isinstance(result, BaseException):
            assert (await result.result()).text == "base: hello there"
    assert terminals(await chunks_of(room, ask())) == [FinishReason.STOP]
    assert room.nothing_left()


async def test_refusals_are_counted_by_their_reason(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(max_num_waiting=1, step_time_s=0.005))
    results = await asyncio.gather(
        *(room.open(ask(request_id=f"r{number}")) for number in range(6)), return_exceptions=True
    )
    num_refused = sum(isinstance(result, MedleyError) for result in results)
    assert num_refused > 0
    assert room.counted("medley_requests_refused_total", reason="queue_full") == num_refused
    for result in results:
        if not isinstance(result, BaseException):
            await result.aclose()
    assert room.counted("medley_requests_refused_total") == num_refused


async def test_request_that_loses_its_place_is_a_refusal_and_no_failure_of_its_adapter(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.upload(lora_files(1), "one")
    stream = OutputStream(lambda: None)
    stream.put(EngineOutput(finish_reason=FinishReason.ERROR, error=gave_way(3)))
    monkeypatch.setattr(room.engine, "submit", lambda request: stream)
    (terminal,) = await chunks_of(room, ask(adapters=("one",)))
    assert terminal.error is not None
    assert terminal.error.code is ErrorCode.RESOURCE_EXHAUSTED
    assert room.counted("medley_requests_refused_total", reason="gave_way") == 1
    assert room.counted("medley_adapter_failures_total") == 0


@pytest.mark.parametrize(("priority", "is_allowed"), [(-1, False), (0, True), (2, True)])
async def test_priority_is_bounded_by_the_callers_key(room: Room, ask: AskFor, priority: int, is_allowed: bool) -> None:
    caller = Principal("key:x", frozenset({Scope.INFER}), first_priority=0)
    if is_allowed:
        await (await room.open(ask(priority=priority), caller)).aclose()
        return
    with pytest.raises(PermissionDeniedError) as caught:
        await room.open(ask(priority=priority), caller)
    assert caught.value.param == "priority"


async def test_priority_on_an_engine_without_is_refused_by_name(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(features=frozenset(Feature) - {Feature.PRIORITY}))
    assert await refused(room, ask(priority=1)) == (
        ErrorCode.INVALID_ARGUMENT,
        "the fake engine has no priority; leave it out",
    )
    await (await room.open(ask())).aclose()


async def test_open_too_many_at_once_is_exhausted(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(inference=InferenceConfig(max_num_opening=1, inline_text_chars=0))
    results = await asyncio.gather(
        *(room.open(ask(request_id=f"r{number}")) for number in range(3)), return_exceptions=True
    )
    assert [code_of(result) for result in results[1:]] == [ErrorCode.RESOURCE_EXHAUSTED] * 2  # type: ignore[arg-type]
    await results[0].aclose()  # type: ignore[union-attr]


async def test_open_beside_answers_not_taken_yet_is_exhausted_until_one_is_closed(
    make_room: MakeRoom, ask: AskFor
) -> None:
    room = await make_room(inference=InferenceConfig(max_num_open=2))
    answered = await room.open(ask(request_id="answered"))
    held = await room.open(ask(request_id="held"))
    while room.engine.stats().num_running or room.engine.stats().num_waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    # The engine is done with both; their callers have yet to take them.
    assert (await refused(room, ask()))[0] is ErrorCode.RESOURCE_EXHAUSTED
    await answered.result()
    assert terminals(await chunks_of(room, ask())) == [FinishReason.STOP]
    await held.aclose()
    assert room.nothing_left()


async def test_open_request_id_in_flight_exists_already(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    first = await room.open(ask())
    with pytest.raises(MedleyError) as caught:
        await room.open(ask())
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert (await first.result()).text == "base: hello there"


async def test_answer_adds_up_and_ends_once(room: Room, ask: AskFor) -> None:
    chunks = await chunks_of(room, ask())
    assert "".join(chunk.text for chunk in chunks) == "base: hello there"
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    terminal = chunks[-1]
    assert terminal.finish_reason is FinishReason.STOP
    assert terminal.usage is not None
    assert (terminal.usage.num_prompt_tokens, terminal.usage.num_completion_tokens) == (18, 17)
    assert terminal.timings is not None
    assert 0 <= terminal.timings.queue_ms <= terminal.timings.ttft_ms <= terminal.timings.e2e_ms
    assert room.nothing_left()


async def test_answer_at_the_token_limit_ends_with_length(room: Room, ask: AskFor) -> None:
    result = await (await room.open(ask(max_new_tokens=5))).result()
    assert (result.text, result.finish_reason) == ("base:", FinishReason.LENGTH)


async def test_prompt_as_it_is_has_no_template(room: Room, ask: AskFor) -> None:
    assert (await (await room.open(ask(apply_template=False))).result()).text == "hello there"


async def test_long_text_is_tokenized_beside_the_loop_with_the_same_answer(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(inference=InferenceConfig(inline_text_chars=3))
    assert (await (await room.open(ask())).result()).text == "base: hello there"


async def test_adapters_in_any_order_give_the_same_answer_and_are_named(room: Room, ask: AskFor) -> None:
    lora = await room.upload(lora_files(), "lora")
    prompt = await room.upload(prompt_files(), "soft")
    one = await (await room.open(ask(adapters=("lora", "soft")))).result()
    other = await (await room.open(ask(adapters=("soft:1", "lora:1")))).result()
    base = await (await room.open(ask())).result()
    assert one.text == other.text != base.text
    assert [(use.name, use.version, use.digest, use.kind) for use in one.adapters] == [
        ("lora", 1, lora.digest, "lora"),
        ("soft", 1, prompt.digest, "prompt"),
    ]


@pytest.mark.parametrize("references", [("lora", "soft"), ("soft", "lora")])
async def test_template_of_the_weight_adapter_goes_before_the_soft_prompts(
    room: Room, ask: AskFor, references: tuple[str, ...]
) -> None:
    await room.upload(with_template(lora_files(), "lora", "L {{ text }}"), "lora")
    await room.upload(with_template(prompt_files(), "prompt", "P {{ text }}"), "soft")
    both = await (await room.open(ask("x", adapters=references))).result()
    soft = await (await room.open(ask("x", adapters=("soft",)))).result()
    # The fake engine answers with the prompt, rotated.
    assert (sorted(both.text), sorted(soft.text)) == (sorted("L x"), sorted("P x"))


def with_template(files: dict[str, bytes], kind: str, template: str) -> dict[str, bytes]:
    manifest = f'{{"name": "any", "kind": "{kind}", "prompt_template": "{template}"}}'
    return {**files, "medley.json": manifest.encode()}


async def test_new_version_is_used_at_once_and_the_old_one_by_number(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(1), "lora")
    first = await (await room.open(ask(adapters=("lora",)))).result()
    await room.upload(lora_files(2), "lora")
    second = await (await room.open(ask(adapters=("lora",)))).result()
    pinned = await (await room.open(ask(adapters=("lora:1",)))).result()
    assert [result.adapters[0].version for result in (first, second, pinned)] == [1, 2, 1]


async def test_known_reference_is_resolved_without_the_database(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "lora")
    room.registry.close()
    (room.data_dir / "registry.db").unlink()
    (room.data_dir / "registry.db").mkdir()
    with pytest.raises(StoreError):
        await room.catalog.set_alias(ANYONE, "lora", "stable", 1)
    assert (await (await room.open(ask(adapters=("lora:1",)))).result()).adapters[0].version == 1


async def test_request_is_answered_by_the_version_it_began_with(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    await room.upload(lora_files(1), "lora", "stable")
    new = await room.upload(lora_files(2), "lora")
    running = await room.open(ask(adapters=("lora",)))
    await room.catalog.set_alias(ANYONE, "lora", "stable", new.version)
    later = await room.open(ask(request_id="later", adapters=("lora",)))
    answers = await asyncio.gather(running.result(), later.result())
    assert [answer.adapters[0].version for answer in answers] == [1, 2]


async def test_stop_string_trims_frees_the_row_and_ends_with_stop(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    chunks = await chunks_of(room, ask("one two three four", stop=("two", "zzz")))
    assert "".join(chunk.text for chunk in chunks) == "base: one "
    assert terminals(chunks) == [FinishReason.STOP]
    assert chunks[-1].error is None
    await asyncio.sleep(0.03)
    assert room.nothing_left()


async def test_stop_string_at_the_very_end_is_trimmed(room: Room, ask: AskFor) -> None:
    chunks = await chunks_of(room, ask("one two", stop=("two",)))
    assert "".join(chunk.text for chunk in chunks) == "base: one "
    assert terminals(chunks) == [FinishReason.STOP]


async def test_logprobs_come_with_their_text(room: Room, ask: AskFor) -> None:
    result = await (await room.open(ask("hi", apply_template=False, num_logprobs=2))).result()
    assert [entry.text for entry in result.logprobs] == ["h", "i"]
    assert [len(entry.top) for entry in result.logprobs] == [2, 2]


async def test_deadline_while_running_ends_with_deadline(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    chunks = await chunks_of(room, ask(deadline_s=time.monotonic() + 0.05))
    assert terminals(chunks) == [FinishReason.DEADLINE]
    assert chunks[-1].error is not None
    assert chunks[-1].error.code is ErrorCode.DEADLINE_EXCEEDED
    assert room.nothing_left()


async def test_engine_death_ends_every_request_once(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    generations = [await room.open(ask(request_id=f"r{number}")) for number in range(20)]
    await anext(generations[0])
    room.engine.kill()
    for generation in generations:
        chunks = [chunk async for chunk in generation]
        assert terminals(chunks) == [FinishReason.ERROR]
        assert isinstance(chunks[-1].error, UnavailableError)
    assert room.nothing_left()
    assert room.counted("medley_requests_total", code="UNAVAILABLE") == 20


async def test_engine_that_raises_ends_the_request_as_internal(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> object:
        raise RuntimeError("secret detail")
        yield

    monkeypatch.setattr(room.engine, "submit", lambda _request: broken())
    chunks = await chunks_of(room, ask())
    assert terminals(chunks) == [FinishReason.ERROR]
    assert chunks[-1].error is not None
    assert (chunks[-1].error.code, "secret" in str(chunks[-1].error)) == (ErrorCode.INTERNAL, False)


async def test_engine_without_terminal_output_still_ends_the_request(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def short() -> object:
        for _ in ():
            yield

    monkeypatch.setattr(room.engine, "submit", lambda _request: short())
    assert terminals(await chunks_of(room, ask())) == [FinishReason.ERROR]


async def test_result_raises_the_error_of_a_failed_request(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    generation = await room.open(ask())
    room.engine.abort("r")
    with pytest.raises(MedleyError) as caught:
        await generation.result()
    assert caught.value.code is ErrorCode.CANCELLED


async def test_closing_early_frees_row_and_lease_and_counts_once(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    await room.upload(lora_files(), "lora")
    generation = await room.open(ask(adapters=("lora",)))
    await anext(aiter(generation))
    assert room.directory.num_leases("lora", 1) == 1
    await generation.aclose()
    await generation.aclose()
    assert room.directory.num_leases("lora", 1) == 0
    await asyncio.sleep(0.05)
    assert room.nothing_left()
    assert [chunk async for chunk in generation] == []
    assert room.counted("medley_requests_total", code="CANCELLED") == 1


async def test_cancelled_reader_leaves_nothing_behind(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    await room.upload(lora_files(), "lora")
    reader = asyncio.create_task(chunks_of(room, ask(adapters=("lora",))))
    await asyncio.sleep(0.05)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.sleep(0.05)
    assert room.nothing_left()


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.002, 0.004])
async def test_cancelled_opening_leaves_nothing_behind(make_room: MakeRoom, ask: AskFor, after_s: float) -> None:
    room = await make_room(SLOW, InferenceConfig(inline_text_chars=0))
    await room.upload(lora_files(), "lora")
    reader = asyncio.create_task(chunks_of(room, ask(adapters=("lora",))))
    await asyncio.sleep(after_s)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.sleep(0.05)
    assert room.nothing_left()


async def test_stopping_the_engine_ends_open_requests_as_unavailable(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(SLOW)
    generation = await room.open(ask())
    await room.engine.stop()
    chunks = [chunk async for chunk in generation]
    assert terminals(chunks) == [FinishReason.ABORT]
    assert isinstance(chunks[-1].error, UnavailableError)


async def test_metrics_count_requests_tokens_and_latencies(room: Room, ask: AskFor) -> None:
    await chunks_of(room, ask("hi", apply_template=False))
    assert room.counted("medley_requests_total", code="OK") == 1
    assert room.counted("medley_prompt_tokens_total") == 3
    assert room.counted("medley_generated_tokens_total") == 2
    for name in ("queue", "ttft", "e2e"):
        assert room.counted(f"medley_request_{name}_seconds_count") == 1
    assert room.counted("medley_inter_token_seconds_count") == 1


def test_default_sampling_fits_the_default_engine() -> None:
    assert SamplingParams().max_new_tokens <= FakeEngineConfig().max_new_tokens


async def test_long_text_does_not_wait_behind_changes_that_wait_for_the_database(
    make_room: MakeRoom, ask: AskFor
) -> None:
    room, gate = await make_room(inference=InferenceConfig(inline_text_chars=0)), threading.Event()
    waiting = [asyncio.create_task(asyncio.to_thread(gate.wait, 10)) for _ in range(64)]
    await asyncio.sleep(0)
    try:
        assert (await asyncio.wait_for((await room.open(ask())).result(), 5)).text == "base: hello there"
    finally:
        gate.set()
        await asyncio.gather(*waiting)
