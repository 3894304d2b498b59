"""The step loop by a clock that only its steps move: which rows it starts, and whom it turns away."""

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")

from server.core.errors import DeadlineExceededError, Refusal, ResourceExhaustedError  # noqa: E402
from server.core.outputs import FinishReason  # noqa: E402
from server.engine.pace import MARGIN  # noqa: E402
from tests.fixtures.simulated_steps import Asked, SimulatedSteps, StepCost  # noqa: E402

STEP_S = 0.125  # a power of two, so that sums of it are exact
NUM_TOKENS = 3
NUM_SEATS = 2
# An answer takes a step for each token, and one for its end; meanwhile each seat starts one.
ANSWER_STEPS = NUM_TOKENS + 1
START_S = STEP_S * ANSWER_STEPS / NUM_SEATS
ANSWER_S = STEP_S * ANSWER_STEPS


class Engine(SimulatedSteps):
    """Two seats, and steps of the same length."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, max_num_waiting: int = 100) -> None:
        super().__init__(monkeypatch, StepCost(STEP_S), max_num_waiting=max_num_waiting, max_num_seqs=NUM_SEATS)

    def get(self, name: str, time_left_s: float | None = None, *, tenant: str = "", priority: int = 0) -> None:
        self.ask(name, Asked(0, tenant, 10, NUM_TOKENS, time_left_s, priority))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def crowd(engine: Engine, count: int) -> None:
    """Let so many rows run, most of which have to wait, until all have ended."""
    for number in range(count):
        engine.get(f"crowd-{number}")
    engine.step(ANSWER_STEPS * -(-count // NUM_SEATS))
    assert [engine.reason(f"crowd-{number}") for number in range(count)] == [FinishReason.STOP] * count


def test_pace_is_what_the_steps_take(engine: Engine) -> None:
    crowd(engine, 80)
    engine.get("one more")
    engine.step()
    pace = engine.loop.stats.pace
    assert pace is not None
    assert pace.start_s == pytest.approx(START_S, rel=0.15)  # of the few starts that a short memory holds
    assert (pace.first_s, pace.step_s, pace.num_tokens) == (STEP_S, STEP_S, NUM_TOKENS)


def test_deadline_that_cannot_be_met_behind_others_is_refused_at_once(engine: Engine) -> None:
    crowd(engine, 80)
    for number in range(NUM_SEATS + 8):
        engine.get(str(number))
    engine.step()
    with pytest.raises(DeadlineExceededError) as refused:
        engine.get("late", MARGIN * (8 * START_S + ANSWER_S - 3 * STEP_S))
    assert refused.value.refusal is Refusal.TOO_LATE_TO_WAIT
    assert engine.loop._waiting.num == 8
    engine.get("in time", MARGIN * (8 * START_S + ANSWER_S + 4 * STEP_S))
    engine.step(ANSWER_STEPS * 6)
    assert engine.reason("in time") is FinishReason.STOP


def test_engine_that_just_started_tries_every_deadline(engine: Engine) -> None:
    for number in range(20):
        engine.get(str(number), STEP_S)
    engine.get("hopeless", STEP_S)


def test_idle_engine_tries_every_deadline_however_slow_it_was(engine: Engine) -> None:
    crowd(engine, 80)
    engine.get("alone", STEP_S * 2.5)
    engine.step(4)
    assert engine.order[-1] == "alone"
    assert engine.reason("alone") is FinishReason.DEADLINE
    assert engine.ends["alone"].error is None


def test_row_that_waited_too_long_is_not_started_where_others_wait(engine: Engine) -> None:
    crowd(engine, 80)
    for number in range(NUM_SEATS):
        engine.get(f"{number}", tenant="a")
    engine.step()
    # Nobody of this tenant waits, so it may try; while it waits, what was left of its time goes.
    engine.get("late", ANSWER_S, tenant="b")
    engine.get("other", tenant="c")
    engine.step(ANSWER_STEPS)
    error = engine.ends["late"].error
    assert error is not None
    assert (engine.reason("late"), error.refusal) == (FinishReason.DEADLINE, Refusal.TOO_LATE_TO_START)
    assert engine.order[-1] == "other"
    assert "late" not in engine.order
    assert engine.loop._waiting.num == 0


def test_row_with_little_time_left_is_started_where_only_a_held_flood_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimulatedSteps(monkeypatch, StepCost(STEP_S), max_num_seqs=8, max_flood_rows=2)
    for number in range(40):
        engine.ask(f"flood-{number}", Asked(0, "flood", 10, NUM_TOKENS))
    for turn in range(12):
        engine.ask(f"before-{turn}", Asked(0, "light", 10, NUM_TOKENS))
        engine.step(ANSWER_STEPS)
    engine.step()  # the flood has as many rows as it may again
    assert engine.loop.stats.pace is not None
    assert engine.loop._waiting.num > 0
    engine.ask("light", Asked(0, "light", 10, NUM_TOKENS, time_left_s=STEP_S / 2))
    engine.step(2)
    assert "light" in engine.order


def test_row_whose_deadline_passed_in_the_queue_is_never_prefilled(engine: Engine) -> None:
    for number in range(NUM_SEATS):
        engine.get(str(number))
    engine.get("late", STEP_S)
    engine.step(ANSWER_STEPS)
    assert engine.reason("late") is FinishReason.DEADLINE
    assert engine.order == ["0", "1"]


def test_rows_of_an_earlier_class_start_before_those_that_came_before(engine: Engine) -> None:
    for number in range(NUM_SEATS + 2):
        engine.get(str(number))
    engine.step()
    engine.get("urgent", priority=-1)
    engine.step(2 * ANSWER_STEPS)
    assert engine.order == ["0", "1", "urgent", "2", "3"]


def test_full_queue_takes_the_place_of_the_same_tenants_row_of_a_later_class(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, max_num_waiting=2)
    for number in range(NUM_SEATS):
        engine.get(f"running-{number}")
        engine.step()
    engine.get("waits")
    engine.get("gives way", priority=1)
    engine.get("urgent", priority=-1)
    with pytest.raises(ResourceExhaustedError) as refused:
        engine.get("one too many")
    assert refused.value.refusal is Refusal.QUEUE_FULL
    engine.step(2 * ANSWER_STEPS)
    error = engine.ends["gives way"].error
    assert error is not None
    assert error.refusal is Refusal.GAVE_WAY
    assert engine.order == ["running-0", "running-1", "urgent", "waits"]
