"""What is kept of requests on the way through the service, and what becomes of references in bulk and in sets."""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import pytest
import sqlalchemy as sa

from adapters.errors import AdapterError, StoreError
from server.core.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.request import Conversation, Message
from server.engine.fake import FakeEngineConfig
from server.evaluation.config import EvaluationConfig
from server.evaluation.outcome import Arm, RolloutPart
from server.evaluation.records import Entry, hash_text
from server.evaluation.reports import ReportQuery
from server.evaluation.schema import REQUESTS
from server.evaluation.store import EvaluationStore
from server.service.directory import ServableAdapter
from server.service.inference import InferenceConfig
from server.service.reference_files import RowFormat
from tests.fixtures.outcomes import outcome_of, record_of
from tests.fixtures.peft_files import lora_files
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room

NOTHING = EvaluationConfig(sample_rate=0.0)


async def answer(room: Room, request: object) -> str:
    return (await (await room.open(request)).result()).text  # type: ignore[arg-type]


async def kept(room: Room) -> list[dict[str, object]]:
    await asyncio.wrap_future(room.evaluation.recorder.flush())
    return rows_of(room)


def rows_of(room: Room) -> list[dict[str, object]]:
    with room.evaluation.store.reader.begin() as connection:
        query = sa.select(REQUESTS).order_by(REQUESTS.c.finished_s)
        return [dict(row) for row in connection.execute(query).mappings()]


async def test_answer_is_kept_with_its_figures_and_without_its_text(room: Room, ask: AskFor) -> None:
    record = await room.upload(lora_files(), "lora")
    result = await (await room.open(ask(adapters=("lora",), text="say it again"))).result()
    [row] = await kept(room)
    assert row["adapters"] == "lora:1"
    assert row["digests"] == [record.digest]
    assert (row["who"], row["request_id"], row["code"]) == (ANYONE.who, "r", "OK")
    assert row["input_sha256"] == hash_text("say it again")
    assert row["num_prompt_tokens"] == result.usage.num_prompt_tokens
    assert row["num_completion_tokens"] == result.usage.num_completion_tokens
    assert row["e2e_s"] == pytest.approx(result.timings.e2e_ms / 1e3)
    assert row["ttft_s"] == pytest.approx(result.timings.ttft_ms / 1e3)
    assert set(row["signals"]) == {"repetition", "copy_rate", "length_ratio"}  # type: ignore[arg-type]
    assert row["text"] is None


async def test_input_of_a_conversation_and_of_token_ids_is_hashed(room: Room, ask: AskFor) -> None:
    turns = (Message("user", "hello"), Message("user", "there"))
    await answer(room, ask(text="", conversation=Conversation(turns)))
    await answer(room, ask(text="", prompt_token_ids=(5, 6, 7)))
    assert [row["input_sha256"] for row in await kept(room)] == [hash_text("hello\nthere"), hash_text("5 6 7")]


async def test_failed_and_abandoned_requests_are_kept_with_their_codes(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(step_time_s=0.01))
    generation = await room.open(ask(request_id="aborted"))
    room.engine.abort("aborted")
    assert [chunk async for chunk in generation]
    abandoned = await room.open(ask(request_id="abandoned"))
    await anext(abandoned)
    await abandoned.aclose()
    rows = await kept(room)
    assert [(row["request_id"], row["code"]) for row in rows] == [("aborted", "CANCELLED"), ("abandoned", "CANCELLED")]
    [figures] = await room.feedback.evaluations(ANYONE)
    assert (figures.totals.num_finished, figures.totals.num_errors) == (2, 2)
    with pytest.raises(NotFoundError):
        await room.feedback.submit(ANYONE, "abandoned", ["x"])


async def test_caller_who_leaves_before_the_last_word_leaves_nothing_to_score(room: Room, ask: AskFor) -> None:
    generation = await room.open(ask())
    text = ""
    while text != "base: hello there":
        text += (await anext(generation)).text
    await generation.aclose()
    assert [row["code"] for row in await kept(room)] == ["CANCELLED"]
    with pytest.raises(NotFoundError):
        await room.feedback.submit(ANYONE, "r", ["x"])


async def test_request_not_sampled_is_kept_only_once_it_has_references(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(evaluation=NOTHING)
    await answer(room, ask(request_id="plain"))
    assert await kept(room) == []
    await answer(room, ask(request_id="with", references=("x",)))
    assert [row["request_id"] for row in await kept(room)] == ["with"]
    assert await room.feedback.submit(ANYONE, "plain", ["base: hello there"]) == {"rouge1": 100.0}
    assert sorted(str(row["request_id"]) for row in await kept(room)) == ["plain", "with"]


async def test_request_of_a_rollout_is_always_kept(
    make_room: MakeRoom, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(evaluation=NOTHING)
    await room.upload(lora_files(), "lora")
    lease = room.directory.lease

    async def routed(*args: object) -> tuple[ServableAdapter, ...]:
        leased = await lease(*args)  # type: ignore[arg-type]
        return tuple(replace(each, rollout=RolloutPart("ro_1", Arm.CANDIDATE)) for each in leased)

    monkeypatch.setattr(room.directory, "lease", routed)
    await answer(room, ask(adapters=("lora",), references=("x",)))
    await kept(room)
    [outcome] = room.evaluation.store.rollout_outcomes("ro_1")
    assert (outcome.arm, outcome.code, outcome.scores) == (Arm.CANDIDATE, "OK", {"rouge1": 0.0})


async def test_shadow_of_a_request_is_scored_by_the_requests_references(room: Room) -> None:
    for arm, request_id in ((Arm.STABLE, "told"), (Arm.SHADOW, "untold"), (Arm.SHADOW, "another")):
        rollout = RolloutPart("ro_2" if request_id == "another" else "ro_1", arm)
        room.feedback.ended(outcome_of(request_id=request_id, who=ANYONE.who, rollout=rollout), "", ())
    await room.feedback.submit(ANYONE, "told", ["text"])
    async with asyncio.timeout(5):
        while sum(bool(each.scores) for each in room.evaluation.store.rollout_outcomes("ro_1")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert room.evaluation.store.rollout_outcomes("ro_2")[0].scores == {}


async def test_acknowledged_scores_are_on_disk_when_they_are_told(room: Room, ask: AskFor) -> None:
    await answer(room, ask())
    await room.feedback.submit(ANYONE, "r", ["base: hello there"])
    other = EvaluationStore(f"sqlite:///{room.data_dir / 'registry.db'}")
    with other.reader.begin() as connection:
        assert connection.execute(sa.text("SELECT scores FROM evaluation_scores")).scalar() == '{"rouge1": 100.0}'
    other.close()


async def test_disk_that_hangs_delays_no_answer_and_what_does_not_fit_is_counted(
    make_room: MakeRoom, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(evaluation=EvaluationConfig(max_num_unwritten=2))
    gate, entered, write = threading.Event(), threading.Event(), room.evaluation.store.write

    def hang(entries: Sequence[Entry]) -> None:
        entered.set()
        assert gate.wait(60)
        write(entries)

    monkeypatch.setattr(room.evaluation.store, "write", hang)
    await answer(room, ask(request_id="hanging"))
    assert await asyncio.to_thread(entered.wait, 20)
    took_s = []
    for number in range(10):
        begun_s = time.monotonic()
        await answer(room, ask(request_id=f"r{number}"))
        took_s.append(time.monotonic() - begun_s)
    assert median(took_s) < 0.1
    assert room.counted("medley_evaluation_dropped_total", reason="unwritten") == 8
    gate.set()
    async with asyncio.timeout(20):
        while len(rows := rows_of(room)) < 3:  # noqa: ASYNC110 - the writer is another thread
            await asyncio.sleep(0.01)
    assert sorted(str(row["request_id"]) for row in rows) == ["hanging", "r0", "r1"]


async def test_references_are_refused_while_the_database_is_away(
    make_room: MakeRoom, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(inference=InferenceConfig(score_wait_s=0.25))
    await answer(room, ask())

    def away(_entries: object) -> None:
        raise StoreError("away") from sa.exc.OperationalError("insert", {}, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(room.evaluation.store, "write", away)
        with pytest.raises(UnavailableError):
            await room.feedback.submit(ANYONE, "r", ["x"])
        # Answers go on, and so do their scores' absence and the figures of before.
        result = await (await room.open(ask(request_id="r2", references=("x",)))).result()
        assert (result.text, result.scores) == ("base: hello there", None)
    assert await room.feedback.submit(ANYONE, "r", ["base: hello there"]) == {"rouge1": 100.0}


async def test_references_for_an_answer_of_another_server_are_found_where_texts_are_kept(make_room: MakeRoom) -> None:
    room = await make_room(evaluation=EvaluationConfig(store_texts=True))
    other = EvaluationStore(f"sqlite:///{room.data_dir / 'registry.db'}", store_texts=True)
    other.write([Entry(record_of(who=ANYONE.who, request_id="elsewhere", text="an answer"))])
    other.close()
    assert await room.feedback.submit(ANYONE, "elsewhere", ["an answer"]) == {"rouge1": 100.0}
    [figures] = await room.feedback.evaluations(ANYONE)
    assert (figures.totals.num_finished, figures.totals.num_scored) == (1, 1)


async def test_references_taken_and_not_scored_before_a_crash_are_scored_after_it(make_room: MakeRoom) -> None:
    config = EvaluationConfig(store_texts=True, claim_lease_s=0.01, upkeep_every_s=0.05)
    room = await make_room(evaluation=config)
    before = EvaluationStore(f"sqlite:///{room.data_dir / 'registry.db'}", store_texts=True)
    before.write([Entry(record_of(text="an answer"), references=("an answer",))])
    before.close()
    async with asyncio.timeout(10):
        while True:
            [figures] = await room.feedback.evaluations(ANYONE)
            if figures.totals.num_scored:
                break
            await asyncio.sleep(0.02)
    assert figures.means == {"rouge1": 100.0}


async def test_references_that_failed_to_be_scored_are_scored_once_they_can_be(
    make_room: MakeRoom, ask: AskFor
) -> None:
    room = await make_room(evaluation=EvaluationConfig(store_texts=True, claim_lease_s=0.01, upkeep_every_s=0.05))
    await answer(room, ask())
    room.scorer.broken = True
    with pytest.raises(InternalError):
        await room.feedback.submit(ANYONE, "r", ["base: hello there"])
    [figures] = await room.feedback.evaluations(ANYONE)
    assert figures.totals.num_scored == 0
    room.scorer.broken = False
    async with asyncio.timeout(20):
        while not (await room.feedback.evaluations(ANYONE))[0].totals.num_scored:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_request_whose_input_is_in_a_reference_set_is_scored(room: Room, ask: AskFor) -> None:
    rows = [{"text": "hello there", "references": ["base: hello there"]}, {"text": "other", "reference": "x"}]
    body = "\n".join(map(json.dumps, rows)).encode()
    assert (await room.references.put_set(ANYONE, "gold", body)).num_references == 2
    await answer(room, ask())
    async with asyncio.timeout(5):
        while not (await room.feedback.evaluations(ANYONE))[0].totals.num_scored:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    [figures] = await room.feedback.evaluations(ANYONE)
    assert figures.means == {"rouge1": 100.0}
    await room.references.remove_set(ANYONE, "gold")
    assert await room.references.sets(ANYONE) == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [(b'{"text": "a", "reference": "x"}\n{"text": 1}\n{', r"line 2: .*\(and 1 more\)"), (b"", "no rows")],
)
async def test_reference_set_with_a_bad_row_is_refused_whole(room: Room, body: bytes, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await room.references.put_set(ANYONE, "gold", body)
    assert await room.references.sets(ANYONE) == ()


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65, "UPPER"])
async def test_reference_set_of_no_good_name_is_refused(room: Room, name: str) -> None:
    with pytest.raises((InvalidArgumentError, AdapterError)):
        await room.references.put_set(ANYONE, name, b'{"text": "a", "reference": "x"}')


async def test_batch_scores_what_is_known_and_tells_the_rest_apart(room: Room, ask: AskFor) -> None:
    for number in range(3):
        await answer(room, ask(request_id=f"r{number}"))
    rows = [
        {"request_id": "r0", "reference": "base: hello there"},
        {"request_id": "never", "reference": "x"},
        {"request_id": "r1", "references": []},
        {"request_id": "r2", "references": ["other"]},
    ]
    done = await room.references.submit_batch(ANYONE, "\n".join(map(json.dumps, rows)).encode(), RowFormat.JSONL)
    assert (done.num_accepted, done.num_unknown, done.num_refused) == (2, 1, 1)
    assert [(error.line, error.message) for error in done.errors] == [(3, "at least one reference is needed")]
    [figures] = await room.feedback.evaluations(ANYONE)
    assert (figures.totals.num_scored, figures.means) == (2, {"rouge1": 50.0})


async def test_batch_larger_than_the_scorers_queue_is_taken_whole(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(evaluation=EvaluationConfig(max_num_queued=1))
    for number in range(40):
        await answer(room, ask(request_id=f"r{number}"))
    body = "request_id,reference\n" + "".join(f"r{number},x\n" for number in range(40))
    done = await room.references.submit_batch(ANYONE, body.encode(), RowFormat.CSV)
    assert (done.num_accepted, done.num_refused) == (40, 0)


async def test_batch_that_finds_no_room_is_told_line_by_line(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.reference_import._TRY_AGAIN_S", 0.001)
    await answer(room, ask())

    def full(*_: object) -> None:
        raise ResourceExhaustedError("full")

    monkeypatch.setattr(room.evaluation.evaluator, "offer", full)
    done = await room.references.submit_batch(ANYONE, b'{"request_id": "r", "reference": "x"}', RowFormat.JSONL)
    assert (done.num_accepted, done.num_refused) == (0, 1)
    assert "wait to be scored" in done.errors[0].message


async def test_errors_of_a_batch_are_counted_and_the_first_hundred_told(room: Room) -> None:
    done = await room.references.submit_batch(ANYONE, b"{\n" * 250, RowFormat.JSONL)
    assert (done.num_refused, len(done.errors)) == (250, 100)


@pytest.mark.parametrize(
    "query",
    [ReportQuery(window_s=0.0), ReportQuery(window_s=1e12), ReportQuery(num_windows=0), ReportQuery(num_windows=501)],
)
async def test_windows_out_of_range_are_refused(room: Room, query: ReportQuery) -> None:
    with pytest.raises(InvalidArgumentError):
        await room.feedback.evaluations(ANYONE, query)
