"""The step loop by a clock that only its steps move: which rows it starts, and whom it turns away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from adapters.manifest import AdapterRole  # noqa: E402
from server.core.errors import DeadlineExceededError, Refusal, ResourceExhaustedError  # noqa: E402
from server.core.outputs import FinishReason  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineOutput, EngineRequest  # noqa: E402
from server.engine.native import step_loop  # noqa: E402
from server.engine.native.adapter_tiers import AdapterTiers  # noqa: E402
from server.engine.native.batch import Batch, Row, StepOutput  # noqa: E402
from server.engine.native.scheduler import Scheduler  # noqa: E402
from server.engine.native.step_loop import StepLoop  # noqa: E402

STEP_S = 0.125  # a power of two, so that sums of it are exact
NUM_TOKENS = 4
NUM_SEATS = 2


class Engine:
    """A loop whose steps the test makes; each takes :data:`STEP_S`, and nothing else takes time."""

    def __init__(self, max_num_waiting: int) -> None:
        self.now_s = 1000.0
        self.ends: dict[str, EngineOutput] = {}
        self.order: list[str] = []
        self.num_prefilled = 0
        self._executor = ThreadPoolExecutor(max_workers=1)
        scheduler = Scheduler(
            max_num_seqs=NUM_SEATS,
            max_num_batched_tokens=100,
            max_prefill_tokens_per_step=100,
            num_stages=1,
            eos_token_ids=[1],
        )
        self.loop = StepLoop(
            scheduler,
            num_slots={AdapterRole.WEIGHTS: 1, AdapterRole.PROMPT: 1},
            tiers=AdapterTiers(lambda _: torch.zeros(1), torch.device("cpu"), 0),
            executor=self._executor,
            deliver=self._deliver,
            max_num_waiting=max_num_waiting,
        )

    def ask(self, name: str, time_left_s: float | None = None, *, tenant: str = "", priority: int = 0) -> None:
        deadline_s = None if time_left_s is None else self.now_s + time_left_s
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS)
        request = EngineRequest(name, (7,) * 10, sampling, deadline_s=deadline_s, tenant=tenant, priority=priority)
        self.loop.add(Row(request, arrival_s=self.now_s, seed=0))

    def step(self, count: int) -> None:
        """Run so many steps, as far as there is something to do."""
        for _ in range(count):
            for call in self.loop._take(wait=False) or ():
                call()
            self.loop._step(self)
            self.loop._hand_back()

    def execute(self, batch: Batch) -> StepOutput:
        self.num_prefilled += batch.num_new
        self.order += [row.request.request_id for row in batch.new_rows]
        self.now_s += STEP_S
        return StepOutput((9,) * len(batch.rows))

    def reset(self) -> None:
        raise AssertionError("no step breaks here")

    def reason(self, name: str) -> FinishReason | None:
        return self.ends[name].finish_reason

    def _deliver(self, outputs: step_loop.Outputs) -> None:
        self.ends |= {name: output for name, output in outputs if output.finish_reason is not None}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine(max_num_waiting=100)
    monkeypatch.setattr(step_loop, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    yield made
    made._executor.shutdown()


def crowd(engine: Engine, count: int) -> None:
    """Let so many rows run, most of which have to wait, until all have ended."""
    for number in range(count):
        engine.ask(f"crowd-{number}")
    engine.step(NUM_TOKENS * -(-count // NUM_SEATS))
    assert [engine.reason(f"crowd-{number}") for number in range(count)] == [FinishReason.LENGTH] * count


# Two rows start every NUM_TOKENS steps, and an answer takes as many.
START_S = STEP_S * NUM_TOKENS / NUM_SEATS
ANSWER_S = STEP_S * NUM_TOKENS


def test_pace_is_what_the_steps_take(engine: Engine) -> None:
    crowd(engine, 80)
    engine.ask("one more")
    engine.step(1)
    pace = engine.loop.stats.pace
    assert pace is not None
    assert pace.start_s == pytest.approx(START_S, rel=0.1)
    assert (pace.first_s, pace.step_s, pace.num_tokens) == (STEP_S, STEP_S, NUM_TOKENS)


def test_deadline_that_cannot_be_met_behind_others_is_refused_at_once(engine: Engine) -> None:
    crowd(engine, 80)
    for number in range(NUM_SEATS + 8):
        engine.ask(str(number))
    engine.step(1)
    with pytest.raises(DeadlineExceededError) as refused:
        engine.ask("late", 8 * START_S + ANSWER_S - 2 * STEP_S)
    assert refused.value.refusal is Refusal.TOO_LATE_TO_WAIT
    assert engine.loop._waiting.num == 8
    engine.ask("in time", 8 * START_S + ANSWER_S + 4 * STEP_S)
    engine.step(NUM_TOKENS * 6)
    assert engine.reason("in time") is FinishReason.LENGTH


def test_engine_that_just_started_tries_every_deadline(engine: Engine) -> None:
    for number in range(20):
        engine.ask(str(number), STEP_S)
    engine.ask("hopeless", STEP_S)


def test_idle_engine_tries_every_deadline_however_slow_it_was(engine: Engine) -> None:
    crowd(engine, 80)
    engine.ask("alone", STEP_S * 2.5)
    engine.step(4)
    assert engine.num_prefilled == 81
    assert engine.reason("alone") is FinishReason.DEADLINE
    assert engine.ends["alone"].error is None


def test_row_that_waited_too_long_is_not_started_where_others_wait(engine: Engine) -> None:
    crowd(engine, 80)
    for number in range(NUM_SEATS):
        engine.ask(f"{number}", tenant="a")
    engine.step(1)
    # Nobody of this tenant waits, so it may try; while it waits, what was left of its time goes.
    engine.ask("late", ANSWER_S + STEP_S, tenant="b")
    engine.ask("other", tenant="c")
    engine.step(NUM_TOKENS)
    assert engine.reason("late") is FinishReason.DEADLINE
    error = engine.ends["late"].error
    assert error is not None
    assert error.refusal is Refusal.TOO_LATE_TO_START
    assert engine.order[-1] == "other"
    assert "late" not in engine.order
    assert engine.loop._waiting.num == 0


def test_row_whose_deadline_passed_in_the_queue_is_never_prefilled(engine: Engine) -> None:
    for number in range(NUM_SEATS):
        engine.ask(str(number))
    engine.ask("late", STEP_S)
    engine.step(NUM_TOKENS)
    assert engine.reason("late") is FinishReason.DEADLINE
    assert engine.order == ["0", "1"]


def test_rows_of_an_earlier_class_start_before_those_that_came_before(engine: Engine) -> None:
    for number in range(NUM_SEATS + 2):
        engine.ask(str(number))
    engine.step(1)
    engine.ask("urgent", priority=-1)
    engine.step(2 * NUM_TOKENS)
    assert engine.order == ["0", "1", "urgent", "2", "3"]


def test_full_queue_takes_the_place_of_the_same_tenants_row_of_a_later_class(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Engine(max_num_waiting=2)
    monkeypatch.setattr(step_loop, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    for number in range(NUM_SEATS):
        made.ask(f"running-{number}")
        made.step(1)
    made.ask("waits")
    made.ask("gives way", priority=1)
    made.ask("urgent", priority=-1)
    with pytest.raises(ResourceExhaustedError) as refused:
        made.ask("one too many")
    assert refused.value.refusal is Refusal.QUEUE_FULL
    made.step(2 * NUM_TOKENS)
    error = made.ends["gives way"].error
    assert error is not None
    assert error.refusal is Refusal.GAVE_WAY
    assert made.order == ["running-0", "running-1", "urgent", "waits"]
    made._executor.shutdown()
