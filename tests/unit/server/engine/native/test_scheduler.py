"""The scheduler: plain Python, so every rule is checked with counted rows and no model."""

import subprocess
import sys

from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest
from server.engine.native.batch import NOT_FINITE, Batch, Row, StepOutput
from server.engine.native.scheduler import Scheduler

EOS = 1


def scheduler(**limits: int) -> Scheduler:
    given = {"max_num_seqs": 4, "max_num_batched_tokens": 100, "max_prefill_tokens_per_step": 100, "num_stages": 4}
    return Scheduler(**{**given, **limits}, eos_token_ids=[EOS])


def row(name: str, num_tokens: int = 5, max_new_tokens: int = 3, deadline_s: float | None = None) -> Row:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    return Row(EngineRequest(name, (7,) * num_tokens, params, deadline_s=deadline_s), arrival_s=0.0, seed=0)


def filled(*rows: Row, **limits: int) -> Scheduler:
    made = scheduler(**limits)
    for each in rows:
        made.add(each)
    return made


def names(batch: Batch) -> list[str]:
    return [each.request.request_id for each in batch.rows]


def step(made: Scheduler, tokens: dict[str, int] | None = None) -> Batch:
    batch = made.schedule(lambda _: True, 1.0)
    tokens = tokens or {}
    made.update(batch, StepOutput(tuple(tokens.get(name, 9) for name in names(batch))))
    return batch


def test_scheduler_imports_neither_torch_nor_asyncio() -> None:
    code = "import sys, server.engine.native.scheduler; print(sorted({'torch', 'asyncio'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_schedule_more_rows_than_seats_starts_the_first() -> None:
    made = filled(*(row(name) for name in "abcdef"))
    assert names(step(made)) == list("abcd")
    assert made.num_waiting == 2


def test_schedule_token_budget_spent_leaves_the_rest_for_the_next_step() -> None:
    made = filled(row("a", 60), row("b", 40), row("c", 1))
    assert names(step(made)) == ["a", "b"]
    batch = step(made)
    assert names(batch) == ["a", "b", "c"]
    assert [each.request.request_id for each in batch.new_rows] == ["c"]


def test_schedule_row_over_the_budget_runs_alone() -> None:
    assert names(step(filled(row("a", 500), row("b", 1)))) == ["a"]


def test_schedule_row_not_admitted_lets_later_rows_pass_and_keeps_its_place() -> None:
    made = filled(*(row(name) for name in "abc"))
    assert names(made.schedule(lambda each: each.request.request_id != "a", 1.0)) == ["b", "c"]
    made.add(row("d"))
    assert names(made.schedule(lambda _: True, 1.0)) == ["b", "c", "a", "d"]


def test_schedule_row_ended_moves_the_last_row_into_the_gap() -> None:
    made = filled(*(row(name, max_new_tokens=9) for name in "abcd"))
    step(made, {"b": EOS})
    batch = step(made)
    assert (names(batch), batch.moves) == (["a", "d", "c"], ((3, 1),))
    assert [each.index for each in batch.rows] == [0, 1, 2]


def test_schedule_several_rows_ended_fills_every_gap_once() -> None:
    made = filled(*(row(name, max_new_tokens=9) for name in "abcdef"), max_num_seqs=6)
    step(made, {"a": EOS, "b": EOS, "f": EOS})
    batch = step(made)
    assert (names(batch), batch.moves) == (["e", "d", "c"], ((4, 0), (3, 1)))


def test_schedule_composition_changes_only_when_rows_join_or_leave() -> None:
    made = filled(row("a", max_new_tokens=3), row("b", max_new_tokens=2))
    seen = [step(made).composition for _ in range(3)]
    assert seen[0] == seen[1] != seen[2]


def test_update_eos_ends_with_stop_and_leaves_the_token_out() -> None:
    made = filled(row("a"))
    batch = made.schedule(lambda _: True, 2.5)
    ((_, output),) = made.update(batch, StepOutput((EOS,)))
    assert (output.token_ids, output.finish_reason, output.queue_s) == ((), FinishReason.STOP, 2.5)


def asking(name: str, **params: object) -> Row:
    return Row(EngineRequest(name, (7,), SamplingParams(**params)), arrival_s=0.0, seed=0)  # type: ignore[arg-type]


def test_update_ignored_eos_is_a_token_like_others() -> None:
    made = filled(each := asking("a", ignore_eos=True, max_new_tokens=3))
    for _ in range(3):
        step(made, {"a": EOS})
    assert (each.token_ids, each.ended) == ([EOS] * 3, True)


def test_update_stop_token_ends_its_own_row_and_is_left_out() -> None:
    made = filled(stopping := asking("a", stop_token_ids=(8,), ignore_eos=True), plain := asking("b"))
    batch = made.schedule(lambda _: True, 1.0)
    ended, other = [output for _, output in made.update(batch, StepOutput((8, 8)))]
    assert (ended.finish_reason, ended.token_ids, stopping.ended) == (FinishReason.STOP, (), True)
    assert (other.finish_reason, other.token_ids, plain.ended) == (None, (8,), False)


def test_update_last_token_ends_with_length() -> None:
    made = filled(row("a", max_new_tokens=1))
    logprob = TokenLogprob(9, -0.5)
    ((_, output),) = made.update(made.schedule(lambda _: True, 1.0), StepOutput((9,), {0: logprob}))
    assert (output.token_ids, output.logprobs, output.finish_reason) == ((9,), (logprob,), FinishReason.LENGTH)


def test_update_not_finite_ends_that_row_alone() -> None:
    made = filled(row("a"), row("b"))
    outputs = made.update(made.schedule(lambda _: True, 1.0), StepOutput((NOT_FINITE, 9)))
    assert [output.finish_reason for _, output in outputs] == [FinishReason.ERROR, None]
    assert outputs[0][1].error is not None


def test_end_row_in_the_middle_of_a_step_says_nothing_more() -> None:
    made = filled(row("a"), row("b"))
    batch = made.schedule(lambda _: True, 1.0)
    assert len(made.end([batch.rows[0]], FinishReason.ABORT)) == 1
    assert [each.request.request_id for each, _ in made.update(batch, StepOutput((9, 9)))] == ["b"]
    assert made.end([batch.rows[0]], FinishReason.ABORT) == []


def test_end_waiting_row_frees_its_place_in_the_queue() -> None:
    waiting = row("b")
    made = filled(row("a"), waiting)
    made.end([waiting], FinishReason.ABORT)
    assert (made.num_waiting, names(step(made))) == (1, ["a"])


def test_expire_running_and_waiting_rows_end_with_deadline() -> None:
    made = filled(row("a", deadline_s=5.0), row("b", deadline_s=5.0), row("c"), max_num_seqs=1)
    step(made)
    assert made.expire(4.9) == []
    ended = made.expire(5.0)
    assert [(each.request.request_id, output.finish_reason) for each, output in ended] == [
        ("a", FinishReason.DEADLINE),
        ("b", FinishReason.DEADLINE),
    ]
    assert names(step(made)) == ["c"]
