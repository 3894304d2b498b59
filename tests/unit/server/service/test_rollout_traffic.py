"""What a running rollout does to requests: who is served by what, what is noted, and what shadows may do."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from adapters.errors import StoreError
from server.core.errors import ResourceExhaustedError
from server.core.outputs import GenerationResult
from server.engine.fake import FakeEngineConfig
from server.evaluation.outcome import Arm, RolloutOutcome
from server.evaluation.rollouts.records import Mode, Plan, Rollout, State, Terms
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.registry import ANNA
from tests.unit.server.service.conftest import ANYONE, AskFor, MakeRoom, Room


async def filled(room: Room, **terms: object) -> Rollout:
    """Two versions of ``a``, the first of which is stable, and a rollout of the second."""
    await room.upload(lora_files(1), "a", "stable")
    await room.upload(lora_files(2), "a")
    return begin(room, **terms)


def begin(room: Room, alias: str = "stable", **terms: object) -> Rollout:
    return room.rollouts.create(Plan("a", alias, 1, 2, Terms(**terms)), ANNA)  # type: ignore[arg-type]


async def answer(room: Room, ask: AskFor, key: str = "", request_id: str = "r", **options: object) -> GenerationResult:
    options = {"adapters": ("a",), **options}
    return await (await room.open(ask(request_id=request_id, routing_key=key, **options))).result()


def version(result: GenerationResult) -> int:
    return next(use.version for use in result.adapters if use.name == "a")


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - tasks, without an event
            await asyncio.sleep(0.005)


def arms(outcomes: Sequence[RolloutOutcome]) -> Counter[Arm]:
    return Counter(outcome.arm for outcome in outcomes)


async def test_requests_of_the_alias_are_dealt_and_noted_with_their_scores(room: Room, ask: AskFor) -> None:
    rollout = await filled(room)
    served = Counter[int]()
    for number in range(40):
        result = await answer(room, ask, str(number), references=("no such text",))
        served[version(result)] += 1
    noted = room.rollout_outcomes(rollout.rollout_id)
    assert arms(noted) == {Arm.STABLE: served[1], Arm.CANDIDATE: served[2]}
    assert min(served.values()) >= 10
    assert {outcome.code for outcome in noted} == {"OK"}
    assert {tuple(outcome.scores.items()) for outcome in noted} == {(("rouge1", 0.0),)}
    assert all(outcome.e2e_s > 0 for outcome in noted)
    assert room.nothing_left()


async def test_key_stays_on_its_side_and_without_one_each_request_is_dealt(room: Room, ask: AskFor) -> None:
    await filled(room)
    with_key = {version(await answer(room, ask, "user", str(number))) for number in range(12)}
    without = {version(await answer(room, ask, "", f"r{number}")) for number in range(24)}
    assert (len(with_key), without) == (1, {1, 2})


async def test_versions_named_and_other_aliases_take_no_part(room: Room, ask: AskFor) -> None:
    rollout = await filled(room, percent=99)
    room.registry.set_alias("a", "old", 1, ANNA)
    for reference in ("a:1", "a@old"):
        assert {version(await answer(room, ask, str(n), adapters=(reference,))) for n in range(8)} == {1}
    assert room.rollout_outcomes(rollout.rollout_id) == []
    assert 2 in {version(await answer(room, ask, str(n), adapters=("a@stable",))) for n in range(8)}


async def test_answers_of_one_call_come_from_one_version(room: Room, ask: AskFor) -> None:
    await filled(room)
    for number in range(12):
        requests = [ask(request_id=f"call{number}", adapters=("a",)) for _ in range(4)]
        several = await room.inference.open_several(ANYONE, requests)
        results = await several.results()
        assert len({version(result) for result in results}) == 1


async def test_request_with_a_soft_prompt_beside_takes_part_once(room: Room, ask: AskFor) -> None:
    rollout = await filled(room)
    await room.upload(prompt_files(), "soft", "stable")
    served = Counter[int]()
    for number in range(20):
        served[version(await answer(room, ask, str(number), adapters=("soft", "a")))] += 1
    assert arms(room.rollout_outcomes(rollout.rollout_id)) == {Arm.STABLE: served[1], Arm.CANDIDATE: served[2]}
    assert set(served) == {1, 2}


async def test_candidate_that_cannot_be_had_is_stood_in_for(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = await filled(room, percent=99)
    room.registry.retire("a", 2, reason="bad", change=ANNA, force=True)
    assert {version(await answer(room, ask, str(number))) for number in range(8)} == {1}
    room.rollouts.finish(rollout, State.ENDED, rollout.verdict, rollout.arms, None)
    third = await room.upload(lora_files(4), "a")
    room.rollouts.create(Plan("a", "stable", 1, third.version, Terms(percent=99)), ANNA)
    whole = room.directory._path

    async def broken(digest: str) -> object:
        if digest == third.digest:
            raise StoreError("the store cannot be read")
        return await whole(digest)

    monkeypatch.setattr(room.directory, "_path", broken)
    assert {version(await answer(room, ask, str(number))) for number in range(8)} == {1}
    assert room.nothing_left()


async def test_request_given_up_is_noted_as_cancelled(room: Room, ask: AskFor) -> None:
    rollout = await filled(room)
    generation = await room.open(ask(adapters=("a",)))
    await generation.aclose()
    (noted,) = room.rollout_outcomes(rollout.rollout_id)
    assert (noted.code, dict(noted.scores)) == ("CANCELLED", {})


async def test_shadow_runs_beside_is_scored_and_counts_apart(room: Room, ask: AskFor) -> None:
    rollout = await filled(room, mode=Mode.SHADOW, percent=100)
    for number in range(6):
        assert version(await answer(room, ask, str(number), references=("no such text",))) == 1
        await until(lambda seen=2 * number + 2: len(room.rollout_outcomes(rollout.rollout_id)) == seen)
    noted = room.rollout_outcomes(rollout.rollout_id)
    assert arms(noted) == {Arm.STABLE: 6, Arm.SHADOW: 6}
    assert all(outcome.scores for outcome in noted)
    assert room.counted("medley_requests_total", adapters="a") == 6
    await until(lambda: room.counted("medley_requests_total", adapters="a~shadow") == 6)
    await until(room.nothing_left)


async def test_shadow_of_a_pair_runs_with_the_same_soft_prompt(room: Room, ask: AskFor) -> None:
    rollout = await filled(room, mode=Mode.SHADOW, percent=100)
    await room.upload(prompt_files(), "soft", "stable")
    await answer(room, ask, adapters=("soft", "a"))
    await until(lambda: len(room.rollout_outcomes(rollout.rollout_id)) == 2)
    labels = {figures.adapters for figures in await room.feedback.evaluations(ANYONE)}
    assert labels == {"a:1+soft:1", "a:2+soft:1"}


async def test_shadows_beyond_the_room_are_dropped_and_counted_and_nobody_waits(
    make_room: MakeRoom, ask: AskFor
) -> None:
    room = await make_room(engine=FakeEngineConfig(step_time_s=0.003))
    await filled(room, mode=Mode.SHADOW, percent=100)
    results = await asyncio.gather(*(answer(room, ask, request_id=f"r{number}") for number in range(8)))
    assert {version(result) for result in results} == {1}
    await until(room.nothing_left)
    assert room.counted("medley_shadows_dropped_total") == 6
    assert room.counted("medley_requests_total", adapters="a~shadow") == 2


async def test_shadow_that_fails_is_nobodys_failure(
    room: Room, ask: AskFor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await filled(room, mode=Mode.SHADOW, percent=100)
    submit = room.engine.submit

    def refuse(request):  # type: ignore[no-untyped-def]
        if request.request_id != "r":
            raise ResourceExhaustedError("the queue is full")
        return submit(request)

    monkeypatch.setattr(room.engine, "submit", refuse)
    caplog.set_level("INFO")
    assert version(await answer(room, ask)) == 1
    await until(lambda: "a shadow failed" in caplog.text)
    assert arms(room.rollout_outcomes(rollout.rollout_id)) == {Arm.STABLE: 1}
    await until(room.nothing_left)


async def test_failed_and_unfinished_requests_have_no_shadow(room: Room, ask: AskFor) -> None:
    await filled(room, mode=Mode.SHADOW, percent=100)
    generation = await room.open(ask(adapters=("a",)))
    await generation.aclose()
    await asyncio.sleep(0.02)
    assert room.counted("medley_requests_total", adapters="a~shadow") == 0
