"""Who gets a slot when there are too few: the real scheduler and slots over a device that only counts steps.

A step takes every row one token further; an adapter loads in one step.
"""

import random
import statistics
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest

from adapters.manifest import AdapterKind, AdapterRole
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.adapter_slots import PATIENCE_STEPS, ResidentAdapters
from server.engine.native.batch import Row, StepOutput
from server.engine.native.scheduler import Scheduler

NUM_SLOTS = 8
MAX_NEW_TOKENS = 64


class Engine:
    """Scheduler and slots; remembers the step at which each request came and at which it got its first token."""

    def __init__(self, num_slots: int, num_seats: int = 32) -> None:
        self._scheduler = Scheduler(
            max_num_seqs=num_seats,
            max_num_batched_tokens=8192,
            max_prefill_tokens_per_step=8192,
            num_stages=1,
            eos_token_ids=[1],
        )
        self._loading: list[ResolvedAdapter] = []
        self._slots: ResidentAdapters[str] = ResidentAdapters(
            {AdapterRole.WEIGHTS: num_slots, AdapterRole.PROMPT: 0}, self._loading.append
        )
        self._names = count()
        self.num_steps = 0
        self.came: dict[str, int] = {}
        self.ttft: dict[str, int] = {}

    @property
    def num_open(self) -> int:
        return self._scheduler.num_waiting + self._scheduler.num_running

    def submit(self, adapter: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        name = str(next(self._names))
        request = EngineRequest(
            name,
            (5,),
            SamplingParams(max_new_tokens=max_new_tokens),
            weight_adapter=ResolvedAdapter(adapter, AdapterKind.LORA, Path(adapter), rank=4),
        )
        self.came[name] = self.num_steps
        self._scheduler.add(Row(request, arrival_s=0.0, seed=0))
        return name

    def step(self) -> None:
        self.num_steps += 1
        self._slots.begin_pass()
        loading = list(self._loading)
        batch = self._scheduler.schedule(self._slots.admit, 0.0)
        for adapter in loading:
            self._slots.loaded(adapter, adapter.digest)
            self._loading.remove(adapter)
        for row, output in self._scheduler.update(batch, StepOutput((9,) * len(batch.rows))):
            name = row.request.request_id
            self.ttft.setdefault(name, self.num_steps - self.came[name])
            if output.finish_reason is not None:
                self._slots.release(row)


def flood(engine: Engine, hot: Iterable[str], num_steps: int, rows_a_step: int = 2) -> None:
    """Let rows of hot adapters arrive at every step, more than the engine can take."""
    names = list(hot)
    for number in range(num_steps):
        if engine.num_open < 200:
            for place in range(rows_a_step):
                engine.submit(names[(number * rows_a_step + place) % len(names)])
        engine.step()


@pytest.mark.parametrize("num_slots", [1, 2, 8])
def test_absent_adapter_under_a_flood_of_resident_ones_waits_its_patience_and_one_generation(num_slots: int) -> None:
    engine = Engine(num_slots, num_seats=512)
    hot = [f"hot-{number}" for number in range(num_slots)]
    flood(engine, hot, 100)
    cold = engine.submit("cold")
    flood(engine, hot, PATIENCE_STEPS + 2 * MAX_NEW_TOKENS)
    assert engine.ttft[cold] <= PATIENCE_STEPS + MAX_NEW_TOKENS + 3


def test_many_absent_adapters_under_a_flood_wait_one_generation_each() -> None:
    engine = Engine(2, num_seats=512)
    flood(engine, ["hot-0", "hot-1"], 100)
    cold = [engine.submit(f"cold-{number}") for number in range(5)]
    flood(engine, ["hot-0", "hot-1"], PATIENCE_STEPS + 7 * MAX_NEW_TOKENS)
    for place, name in enumerate(cold, start=1):
        assert engine.ttft[name] <= PATIENCE_STEPS + place * (MAX_NEW_TOKENS + 3)


def open_loop(num_adapters: int, rows_a_step: float) -> Engine:
    """Serve rows of equally hot adapters that arrive at random steps."""
    draw = random.Random(7)
    engine = Engine(NUM_SLOTS)
    for _ in range(4000):
        while draw.random() < rows_a_step / (1 + rows_a_step):
            engine.submit(f"a{draw.randrange(num_adapters)}", draw.randint(8, MAX_NEW_TOKENS))
        engine.step()
    return engine


def closed_loop(num_adapters: int, num_clients: int) -> Engine:
    """Serve clients that each send their next row when the last has ended."""
    draw = random.Random(7)
    engine = Engine(NUM_SLOTS)
    for _ in range(4000):
        while engine.num_open < num_clients:
            engine.submit(f"a{draw.randrange(num_adapters)}", draw.randint(8, MAX_NEW_TOKENS))
        engine.step()
    return engine


@pytest.mark.parametrize("rows_a_step", [0.1, 0.2, 0.3])
def test_twice_as_many_hot_adapters_as_slots_open_loop_median_ttft_stays_near(rows_a_step: float) -> None:
    resident, short = (open_loop(num, rows_a_step) for num in (NUM_SLOTS, 2 * NUM_SLOTS))
    medians = [statistics.median(engine.ttft.values()) for engine in (resident, short)]
    assert medians[1] <= 3 * medians[0]
    assert len(short.ttft) >= 0.98 * len(resident.ttft)


def test_twice_as_many_hot_adapters_as_slots_closed_loop_keeps_its_throughput() -> None:
    resident, short = (closed_loop(num, 16) for num in (NUM_SLOTS, 2 * NUM_SLOTS))
    assert len(short.ttft) >= 0.7 * len(resident.ttft)
    assert max(short.ttft.values()) <= PATIENCE_STEPS + 3 * MAX_NEW_TOKENS
