"""What is told of ended requests: one log line each, whatever became of them, without their texts."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from adapters.errors import AdapterError
from server.core.errors import MedleyError, ResourceExhaustedError
from server.engine.fake import FakeEngineConfig
from server.observability.durations import Durations
from server.observability.logging import JsonFormatter, LogConfig
from server.observability.spans import Call, Stage, Value, working_for
from tests.fixtures.peft_files import lora_files
from tests.unit.server.service.conftest import AskFor, MakeRoom, Room

SECRET = "a very private dialogue"
ON = LogConfig(requests=True)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The lines of ended requests as JSON, growing."""
    found: list[dict[str, Any]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    logger = logging.getLogger("medley.requests")
    caplog.set_level(logging.INFO, logger.name)
    reader = Reader()
    logger.addHandler(reader)
    yield found
    logger.removeHandler(reader)


async def answer(room: Room, request: object) -> str:
    return (await (await room.open(request)).result()).text  # type: ignore[arg-type]


async def test_ended_request_gives_one_line_with_its_facts(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]]
) -> None:
    room = await make_room(log=ON)
    record = await room.upload(lora_files(), "lora")
    await answer(room, ask(SECRET, adapters=("lora",), references=(SECRET,)))

    (line,) = lines
    assert line["message"] == "request ended"
    assert (line["request_id"], line["who"]) == ("r", "anonymous")
    assert (line["adapters"], line["digests"]) == (["lora:1"], [record.digest])
    assert (line["code"], line["finish_reason"]) == ("OK", "stop")
    assert line["num_prompt_tokens"] == len(f"base: {SECRET}") + 1
    assert line["num_completion_tokens"] == len(f"base: {SECRET}")
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["e2e_ms"] < 5000
    assert "trace_id" not in line
    assert SECRET not in json.dumps(line)


async def test_line_has_the_texts_where_they_are_allowed(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]]
) -> None:
    room = await make_room(log=LogConfig(requests=True, texts=True))
    await answer(room, ask(SECRET))
    assert (lines[0]["text"], lines[0]["answer"]) == (SECRET, f"base: {SECRET}")


async def test_requests_give_no_line_unless_asked_for(room: Room, ask: AskFor, lines: list[dict[str, Any]]) -> None:
    await answer(room, ask())
    assert lines == []


@pytest.mark.parametrize(
    ("options", "code"), [({"text": ""}, "INVALID_ARGUMENT"), ({"adapters": ("nobody",)}, "NOT_FOUND")]
)
async def test_refused_request_gives_a_line_with_its_code(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]], options: dict[str, Any], code: str
) -> None:
    room = await make_room(log=ON)
    with pytest.raises((MedleyError, AdapterError)):
        await room.open(ask(**options))
    (line,) = lines
    assert (line["code"], line["finish_reason"], line["adapters"]) == (code, "", [])
    assert line["queue_ms"] is line["ttft_ms"] is None


async def test_request_that_is_given_up_gives_a_line_as_cancelled(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]]
) -> None:
    room = await make_room(FakeEngineConfig(step_time_s=0.01), log=ON)
    generation = await room.open(ask("x" * 200))
    await anext(generation)
    await generation.aclose()
    await generation.aclose()
    (line,) = lines
    assert (line["code"], line["finish_reason"]) == ("CANCELLED", "")
    assert line["num_completion_tokens"] >= 1


async def test_request_of_a_dead_engine_gives_a_line_with_its_error(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]]
) -> None:
    room = await make_room(FakeEngineConfig(step_time_s=0.01), log=ON)
    generation = await room.open(ask("x" * 200))
    await anext(generation)
    room.engine.kill()
    with pytest.raises(MedleyError):
        await generation.result()
    assert (lines[0]["code"], lines[0]["finish_reason"]) == ("UNAVAILABLE", "error")


class Kept:
    """A call that keeps what it is given."""

    trace_id = "ab" * 16

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.facts: dict[str, Value] = {}

    def name(self, name: str) -> None: ...

    def note(self, attributes: Any) -> None:
        self.facts |= attributes

    def failed(self, code: str) -> None: ...

    def keep(self, stage: Stage) -> None:
        self.stages.append(stage)


async def traced(room: Room, request: object) -> Stage:
    kept = Kept()
    call: Call = kept
    with working_for(call):
        await answer(room, request)
    (stage,) = kept.stages
    assert kept.facts == {"medley.code": "OK"}
    return stage


async def test_loads_of_its_adapters_are_told_under_the_queue(room: Room, ask: AskFor) -> None:
    record = await room.upload(lora_files(), "lora")
    times, plain = Durations(), room.engine.stats

    def load_and_count() -> None:
        times.observe(0.5, "another")
        times.observe(0.25, record.digest)

    def stats() -> Any:
        return replace(plain(), adapter_load_times=times.counted)

    room.engine.stats = stats  # type: ignore[method-assign]
    submit = room.engine.submit

    def submit_and_load(request: Any) -> Any:
        outputs = submit(request)
        load_and_count()
        return outputs

    room.engine.submit = submit_and_load  # type: ignore[method-assign]
    stage = await traced(room, ask(adapters=("lora",)))
    (queue,) = [each for each in stage.stages if each.name == "queue"]
    (load,) = queue.stages
    assert (load.name, load.attributes) == ("load", {"medley.digest": record.digest})
    assert load.ended_s - load.begun_s == pytest.approx(0.25)
    # It was over before this one came.
    stage = await traced(room, ask(request_id="later"))
    assert not any(each.stages for each in stage.stages)


async def test_log_line_of_a_traced_request_has_the_trace(
    make_room: MakeRoom, ask: AskFor, lines: list[dict[str, Any]]
) -> None:
    await traced(await make_room(log=ON), ask())
    assert lines[0]["trace_id"] == Kept.trace_id


async def test_request_that_the_queue_refuses_ends_in_the_stage_before(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(step_time_s=0.05, max_num_seqs=1, max_num_waiting=1))
    first = await room.open(ask("x" * 100, request_id="first"))
    await anext(first)
    second = await room.open(ask("x" * 100, request_id="second"))
    kept = Kept()
    with working_for(kept), pytest.raises(ResourceExhaustedError):
        await room.open(ask(request_id="third"))
    assert [stage.name for stage in kept.stages[0].stages] == ["lease", "prompt"]
    await first.aclose()
    await second.aclose()
