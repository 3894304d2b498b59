"""What an engine knows of its own pace, and whom it turns away for it."""

import pytest

from server.core.errors import DeadlineExceededError, Refusal
from server.engine.pace import MARGIN, Pace, PaceMeter

PACE = Pace(start_s=0.1, first_s=0.5, step_s=0.01, num_tokens=51.0)


def measured(num_rows: int, *, is_room_short: bool = True, step_s: float = 0.01) -> PaceMeter:
    """Of rows of 20 tokens, two of which start a step."""
    meter = PaceMeter()
    for _ in range(num_rows // 2):
        meter.stepped(step_s, 2, is_room_short=is_room_short)
        for _ in range(2):
            meter.begun(0.03)
            meter.ended(20, is_whole=True)
    return meter


def test_pace_says_what_was_measured() -> None:
    pace = measured(100).pace
    assert pace is not None
    assert (pace.start_s, pace.first_s, pace.step_s, pace.num_tokens) == pytest.approx((0.005, 0.03, 0.01, 20))
    assert pace.wait_s(10) == pytest.approx(0.05)
    assert pace.answer_s(256) == pytest.approx(0.03 + 19 * 0.01)
    assert pace.answer_s(5) == pytest.approx(0.03 + 4 * 0.01)


def test_pace_is_unknown_until_enough_rows_had_to_wait() -> None:
    assert PaceMeter().pace is None
    assert measured(10).pace is None
    assert measured(1000, is_room_short=False).pace is None
    assert measured(16).pace is not None


def test_pace_is_unknown_until_enough_answers_were_whole() -> None:
    meter = PaceMeter()
    for _ in range(100):
        meter.stepped(0.01, 1, is_room_short=True)
        meter.begun(0.03)
    assert meter.pace is None


def test_length_to_go_by_is_one_that_few_answers_exceed() -> None:
    meter = measured(16)
    for _ in range(500):
        meter.ended(10, is_whole=True)
        meter.ended(30, is_whole=True)
    pace = meter.pace
    assert pace is not None
    assert pace.num_tokens == pytest.approx(20 + 2 * 10, rel=0.02)


def test_answers_cut_short_do_not_make_answers_look_short() -> None:
    meter = measured(16)
    for _ in range(500):
        meter.ended(10, is_whole=True)
        meter.ended(10, is_whole=False)
    pace = meter.pace
    assert pace is not None
    assert pace.num_tokens > 18


def test_answers_that_are_all_cut_short_do_not_look_endless() -> None:
    meter = measured(16)
    for _ in range(100_000):
        meter.ended(10, is_whole=False)
    assert meter.pace is not None
    assert meter.pace.num_tokens < 200


def test_nothing_started_for_long_does_not_make_the_next_start_look_far() -> None:
    meter = measured(100)
    for _ in range(16):
        for _ in range(99):
            meter.stepped(0.1, 0, is_room_short=True)
        meter.stepped(0.1, 1, is_room_short=True)
    for _ in range(99):
        meter.stepped(0.1, 0, is_room_short=True)
    assert meter.pace is not None
    assert meter.pace.start_s < 12


def test_pace_of_a_slow_while_is_forgotten() -> None:
    meter = measured(100, step_s=2.0)
    for _ in range(4000):
        meter.stepped(0.01, 2, is_room_short=True)
        meter.ended(5, is_whole=True)
    pace = meter.pace
    assert pace is not None
    assert (pace.start_s, pace.step_s, pace.num_tokens) == pytest.approx((0.005, 0.01, 5), rel=0.05)


def test_steps_at_which_nobody_was_kept_waiting_say_nothing_of_waiting() -> None:
    meter = measured(100)
    for _ in range(1000):
        meter.stepped(0.04, 0, is_room_short=False)
    pace = meter.pace
    assert pace is not None
    assert pace.start_s == pytest.approx(0.005)


@pytest.mark.parametrize(("time_left_s", "num_ahead"), [(1.01, 0), (0.01, 0), (2.01 * MARGIN, 10), (1e9, 10**6)])
def test_request_that_will_be_in_time_or_has_nobody_before_it_may_wait(time_left_s: float, num_ahead: int) -> None:
    PACE.check_waiting(time_left_s, 256, num_ahead)


@pytest.mark.parametrize(("time_left_s", "num_ahead"), [(1.99 * MARGIN, 10), (0.99 * MARGIN, 1), (-1.0, 1)])
def test_request_that_would_be_late_may_not_wait(time_left_s: float, num_ahead: int) -> None:
    with pytest.raises(DeadlineExceededError, match=f"{num_ahead} requests are before it") as refused:
        PACE.check_waiting(time_left_s, 256, num_ahead)
    assert refused.value.refusal is Refusal.TOO_LATE_TO_WAIT


def test_short_answer_may_still_start_where_a_long_one_may_not() -> None:
    PACE.check_starting(0.7 * MARGIN, 11)
    with pytest.raises(DeadlineExceededError) as refused:
        PACE.check_starting(0.7 * MARGIN, 256)
    assert refused.value.refusal is Refusal.TOO_LATE_TO_START
