"""The encoder's share of each step: bounded while rows decode, whole while none does, in counted work and no model."""

import pytest

from server.core.outputs import FinishReason
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest
from server.engine.native.batch import Batch, Row, StepOutput
from server.engine.native.scheduler import MAX_GROWTH, Scheduler

NUM_STAGES = 5
BOUND = 20


def row(name: str, num_tokens: int, max_new_tokens: int = 50, deadline_s: float | None = None) -> Row:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    return Row(EngineRequest(name, (7,) * num_tokens, params, deadline_s=deadline_s), arrival_s=0.0, seed=0)


class Steps:
    """A scheduler whose every step is taken; checks that each row passes each stage once, in order."""

    def __init__(self, num_decoding: int, max_num_seqs: int = 8) -> None:
        self.scheduler = Scheduler(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=1000,
            max_prefill_tokens_per_step=BOUND,
            num_stages=NUM_STAGES,
            eos_token_ids=[1],
        )
        self._stages: dict[str, int] = {}
        for number in range(num_decoding):
            self.scheduler.add(row(f"decoding-{number}", 1))
        if num_decoding:
            self.step()

    def step(self) -> Batch:
        batch = self.scheduler.schedule(lambda _: True, 1.0)
        for share in batch.shares:
            for each in share.rows:
                assert self._stages.get(each.request.request_id, 0) == share.first_stage < share.stop_stage
                self._stages[each.request.request_id] = share.stop_stage
        for index, each in enumerate(batch.rows):
            assert each.index == index
            assert self._stages[each.request.request_id] == NUM_STAGES
        self.scheduler.update(batch, StepOutput((9,) * len(batch.rows)))
        return batch


def work(batch: Batch) -> int:
    """Positions times stages."""
    return sum(
        (share.stop_stage - share.first_stage) * sum(each.num_encoder_tokens for each in share.rows)
        for share in batch.shares
    )


def new(batch: Batch) -> list[str]:
    return [each.request.request_id for each in batch.new_rows]


def test_long_row_beside_decoding_ones_is_encoded_over_steps_in_which_they_go_on() -> None:
    steps = Steps(num_decoding=2)
    steps.scheduler.add(row("long", 3 * BOUND))
    batches = [steps.step() for _ in range(5)]
    assert [new(batch) for batch in batches] == [[], [], [], [], ["long"]]
    assert all(len(batch.rows) >= 2 for batch in batches)
    assert all(0 < work(batch) <= BOUND * NUM_STAGES for batch in batches)


def test_row_longer_than_the_bound_times_the_stages_still_passes_a_stage_a_step() -> None:
    steps = Steps(num_decoding=1)
    steps.scheduler.add(row("huge", BOUND * NUM_STAGES * 2))
    assert [new(steps.step()) for _ in range(NUM_STAGES)] == [[]] * (NUM_STAGES - 1) + [["huge"]]


def test_burst_beside_decoding_rows_joins_as_the_bound_allows_in_order() -> None:
    steps = Steps(num_decoding=4)
    for number in range(4):
        steps.scheduler.add(row(str(number), 9))
    batches = [steps.step() for _ in range(2)]
    assert [new(batch) for batch in batches] == [["0", "1"], ["2", "3"]]
    assert all(work(batch) <= BOUND * NUM_STAGES for batch in batches)


@pytest.mark.parametrize(("num_decoding", "growth"), [(4, 1), (2, 2), (1, MAX_GROWTH)])
def test_bound_grows_while_few_rows_decode_and_more_want_to(num_decoding: int, growth: int) -> None:
    steps = Steps(num_decoding, max_num_seqs=num_decoding + 20)
    for number in range(5):
        steps.scheduler.add(row(str(number), 30))
    assert growth * BOUND * NUM_STAGES - 30 < work(steps.step()) <= growth * BOUND * NUM_STAGES


def test_nothing_decoding_encodes_a_burst_whole() -> None:
    steps = Steps(num_decoding=0)
    for number in range(4):
        steps.scheduler.add(row(str(number), 100))
    assert len(new(steps.step())) == 4


def test_last_decoding_row_ended_the_rest_of_the_pass_runs_whole() -> None:
    steps = Steps(num_decoding=1)
    steps.scheduler.add(row("long", 4 * BOUND))
    first = steps.step()
    assert new(first) == []
    steps.scheduler.end([first.rows[0]], FinishReason.ABORT)
    batch = steps.step()
    assert [each.request.request_id for each in batch.rows] == ["long"]


def test_rows_in_the_encoder_keep_their_seats() -> None:
    steps = Steps(num_decoding=2, max_num_seqs=3)
    for name in ("long", "short"):
        steps.scheduler.add(row(name, 3 * BOUND if name == "long" else 1))
    for _ in range(3):
        assert len(steps.step().rows) == 2
    assert (steps.scheduler.num_running, steps.scheduler.num_waiting) == (3, 1)


def test_row_that_ends_in_the_encoder_never_joins_and_frees_its_seat() -> None:
    steps = Steps(num_decoding=1, max_num_seqs=2)
    gone = row("gone", 4 * BOUND, deadline_s=5.0)
    steps.scheduler.add(gone)
    steps.step()
    assert [each.request.request_id for each, _ in steps.scheduler.expire(5.0)] == ["gone"]
    steps.scheduler.add(row("next", 1))
    assert new(steps.step()) == ["next"]
    assert gone.index == -1


def test_batch_counts_the_rows_that_left_the_queue_once() -> None:
    steps = Steps(num_decoding=2)
    steps.scheduler.add(row("long", 3 * BOUND))
    assert [len(steps.step().started) for _ in range(3)] == [1, 0, 0]
    assert steps.scheduler.num_waiting == 0
