"""References with a request and later; scoring never delays an answer."""

import asyncio
import json
import logging
import time

import pytest

from server.core.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from server.core.outputs import FinishReason
from server.engine.fake import FakeEngineConfig
from server.evaluation.config import EvaluationConfig
from server.evaluation.figures import Totals
from server.service.inference import InferenceConfig
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room

SECRET = "a very private dialogue"


async def answer(room: Room, request: object) -> str:
    return (await (await room.open(request)).result()).text  # type: ignore[arg-type]


async def test_references_in_the_request_give_scores_on_the_terminal_chunk(room: Room, ask: AskFor) -> None:
    result = await (await room.open(ask(references=("base: hello there",)))).result()
    assert result.scores == {"rouge1": 100.0}


async def test_request_without_references_has_no_scores(room: Room, ask: AskFor) -> None:
    assert (await (await room.open(ask())).result()).scores is None
    [figures] = await room.feedback.evaluations(ANYONE)
    assert (figures.adapters, figures.totals, figures.means) == ("base", Totals(1, 0, 0), {})


async def test_references_later_give_scores(room: Room, ask: AskFor) -> None:
    await answer(room, ask())
    assert await room.feedback.submit(ANYONE, "r", ["other", "base: hello there"]) == {"rouge1": 100.0}


@pytest.mark.parametrize("references", [[], [" "], ["x"] * 17, ["x" * 20_001]])
async def test_references_that_cannot_be_scored_are_refused(room: Room, ask: AskFor, references: list[str]) -> None:
    await answer(room, ask())
    with pytest.raises(InvalidArgumentError):
        await room.feedback.submit(ANYONE, "r", references)


async def test_references_for_an_unknown_or_failed_request_are_not_found(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(step_time_s=0.01))
    generation = await room.open(ask())
    room.engine.abort("r")
    chunks = [chunk async for chunk in generation]
    assert chunks[-1].finish_reason is FinishReason.ABORT
    for request_id in ("r", "unknown"):
        with pytest.raises(NotFoundError):
            await room.feedback.submit(ANYONE, request_id, ["a reference"])


async def test_evaluations_and_histograms_are_kept_per_adapter_version(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "lora")
    text = await answer(room, ask(adapters=("lora",)))
    await answer(room, ask(adapters=("lora",), references=(text,)))
    await answer(room, ask(adapters=("lora",), references=("other",)))
    await answer(room, ask(references=("other",)))
    found = await room.feedback.evaluations(ANYONE)
    figures = {each.adapters: (each.totals.num_scored, each.means["rouge1"]) for each in found}
    assert figures == {"base": (1, 0.0), "lora:1": (2, 50.0)}
    assert room.counted("medley_evaluation_score_count", metric="rouge1", adapters="lora:1") == 2
    assert room.counted("medley_evaluation_score_sum", metric="rouge1", adapters="lora:1") == 100.0


async def test_answers_are_scored_by_what_their_adapters_ask_for(room: Room, ask: AskFor) -> None:
    def saying(**fields: object) -> bytes:
        return json.dumps({"name": "x", **fields}).encode()

    translator = {**lora_files(), "medley.json": saying(kind="lora", task="translation")}
    prompt = {
        **prompt_files(),
        "medley.json": saying(kind="prompt", task="translation", metrics=["exact_match", "bleu"]),
    }
    await room.upload(translator, "translator")
    assert (await room.upload(prompt, "soft")).metrics == ("exact_match", "bleu")
    for number, adapters in enumerate(((), ("translator",), ("translator", "soft"))):
        await answer(room, ask(request_id=f"r{number}", adapters=adapters, references=("x",)))
    await until_scored(room, 3)
    assert room.scorer.asked[-3:] == [("rouge",), ("bleu", "chrf", "rouge"), ("exact_match", "bleu", "chrf", "rouge")]


async def test_slow_scorer_delays_neither_text_nor_other_requests(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(inference=InferenceConfig(score_wait_s=1.0))
    room.scorer.gate.clear()
    generation = await room.open(ask(references=("base: hello there",)))
    start_s = time.monotonic()
    text, text_s = "", 0.0
    async for chunk in generation:
        text += chunk.text
        if text == "base: hello there" and not text_s:
            text_s = time.monotonic() - start_s
    terminal_s = time.monotonic() - start_s
    assert chunk.finish_reason is FinishReason.STOP
    assert chunk.scores is None
    assert text_s < 0.8
    assert 1.0 <= terminal_s < 10
    assert chunk.timings is not None
    assert chunk.timings.e2e_ms < 800
    # Another request, without references, meets no wait at all.
    start_s = time.monotonic()
    await answer(room, ask(request_id="r2"))
    assert time.monotonic() - start_s < 0.8
    room.scorer.gate.set()
    await until_scored(room, 1)


async def until_scored(room: Room, num_scored: int) -> None:
    for _ in range(1000):
        if sum(each.totals.num_scored for each in await room.feedback.evaluations(ANYONE)) >= num_scored:
            return
        await asyncio.sleep(0.005)
    pytest.fail("it was never scored")


async def test_full_scoring_queue_drops_counts_and_still_answers(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(inference=InferenceConfig(score_wait_s=0.01), evaluation=EvaluationConfig(max_num_queued=1))
    room.scorer.gate.clear()
    for number in range(5):
        result = await (await room.open(ask(request_id=f"r{number}", references=("x",)))).result()
        assert (result.text, result.scores) == ("base: hello there", None)
    assert room.counted("medley_evaluation_dropped_total", reason="unscored") == 3
    with pytest.raises(ResourceExhaustedError):
        await room.feedback.submit(ANYONE, "r0", ["x"])
    room.scorer.gate.set()
    await until_scored(room, 2)


async def test_broken_scorer_costs_the_scores_not_the_answer(room: Room, ask: AskFor) -> None:
    room.scorer.broken = True
    result = await (await room.open(ask(references=("x",)))).result()
    assert (result.text, result.scores) == ("base: hello there", None)
    room.scorer.broken = False
    assert await room.feedback.submit(ANYONE, "r", ["base: hello there"]) == {"rouge1": 100.0}


async def test_caller_who_gives_up_on_scores_does_not_stop_the_worker(room: Room, ask: AskFor) -> None:
    await answer(room, ask())
    room.scorer.gate.clear()
    for _ in range(2):  # one being scored, one queued
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(room.feedback.submit(ANYONE, "r", ["x"]), 0.05)
    room.scorer.gate.set()
    assert await room.feedback.submit(ANYONE, "r", ["base: hello there"]) == {"rouge1": 100.0}


async def test_logs_carry_scores_and_ids_but_no_text(room: Room, ask: AskFor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    record = await room.upload(lora_files(), "lora")
    await answer(room, ask(SECRET, adapters=("lora",), references=(f"reference of {SECRET}",)))
    room.scorer.broken = True
    await answer(room, ask(SECRET, request_id="r2", references=(f"reference of {SECRET}",)))
    [scored] = [entry for entry in caplog.records if entry.message == "request scored"]
    fields = vars(scored)
    assert (fields["request_id"], fields["digests"], fields["scores"]) == ("r", [record.digest], {"rouge1": 0.0})
    assert "private" not in " ".join(str(vars(entry)) for entry in caplog.records)
