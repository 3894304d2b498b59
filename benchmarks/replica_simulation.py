"""Replicas of a deployment on Ray Serve as a discrete-event simulation, with the router's real choice in it.

The model. Requests come by a Poisson process, each for one adapter, drawn by popularity. A door knows how many
requests each replica has, and chooses with :func:`server.runtime.affinity.choose`. A replica has rows and adapter
slots; requests wait for a row in the order they came; an adapter that is not resident is loaded, one at a time in each
replica, into the slot that was least recently used and is in nobody's use. Then the first token comes after the
prefill, and the row is free after the whole answer. Both are the same for every request.

What is left out: rows of one batch slow each other down in a real engine; doors know only what they sent themselves;
a hop costs time; requests differ in length; replicas die.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from server.engine.fake_slots import FakeSlots
from server.runtime.affinity import Spill, choose

_WARM_SHARE = 0.25
_SPILL = Spill()


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated.

    Attributes:
        num_replicas: Replicas.
        num_adapters: Adapters that are asked for.
        zipf: How uneven they are: the share of the n-th falls as 1/n to this power; 0 is alike.
        load: Offered load, as a share of what all rows can do if every adapter is resident.
        num_requests: Requests; the first quarter is not counted.
        num_rows: Rows of a replica's batch.
        num_slots: Adapters a replica holds.
        prefill_s: From a row to the first token.
        answer_s: From a row to the end.
        loading_s: Of an adapter.
        is_affine: Whether requests go by their adapter; else the less loaded of two replicas is taken.
        spill: When a replica is passed over.
        seed: Of the draws.
    """

    num_replicas: int
    num_adapters: int
    zipf: float = 0.0
    load: float = 0.6
    num_requests: int = 20_000
    num_rows: int = 8
    num_slots: int = 8
    prefill_s: float = 0.03
    answer_s: float = 0.4
    loading_s: float = 0.03
    is_affine: bool = True
    spill: Spill = _SPILL
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        hit_rate: Share of the requests whose adapter was resident when they got their row.
        ttft_p50_ms: Median time to first token.
        ttft_p99_ms: What 99 % of them are below.
        peak_over_mean: Requests served by the busiest replica over the mean.
    """

    hit_rate: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    peak_over_mean: float


@dataclass(slots=True)
class _Request:
    adapter: str
    came_s: float
    number: int


@dataclass(slots=True)
class _Replica:
    slots: FakeSlots
    num_free_rows: int
    waiting: deque[_Request] = field(default_factory=deque)
    loader_free_s: float = 0.0
    num_taken: int = 0


class _Run:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._draw = random.Random(fleet.seed)  # noqa: S311 - a simulation
        self._now_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._loads = {f"replica-{number}": 0 for number in range(fleet.num_replicas)}
        self._replicas = {name: _Replica(FakeSlots(fleet.num_slots), fleet.num_rows) for name in self._loads}
        weights = np.arange(1, fleet.num_adapters + 1) ** -fleet.zipf
        self._adapters = [f"adapter-{number}" for number in range(fleet.num_adapters)]
        self._weights = list(itertools.accumulate(weights / weights.sum()))
        self._num_warm = int(fleet.num_requests * _WARM_SHARE)
        self._num_hits = 0
        self._ttft_s: list[float] = []

    def outcome(self) -> Outcome:
        self._at(0.0, lambda: self._come(0))
        while self._events:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        taken = [replica.num_taken for replica in self._replicas.values()]
        return Outcome(
            self._num_hits / len(self._ttft_s),
            float(np.percentile(self._ttft_s, 50)) * 1e3,
            float(np.percentile(self._ttft_s, 99)) * 1e3,
            max(taken) * len(taken) / sum(taken),
        )

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), happen))

    def _come(self, number: int) -> None:
        fleet = self._fleet
        (adapter,) = self._draw.choices(self._adapters, cum_weights=self._weights)
        name = choose(adapter if fleet.is_affine else "", self._loads, fleet.spill, self._draw)[0]
        self._loads[name] += 1
        self._replicas[name].waiting.append(_Request(adapter, self._now_s, number))
        self._admit(name)
        if number + 1 < fleet.num_requests:
            rate = fleet.load * fleet.num_replicas * fleet.num_rows / fleet.answer_s
            self._at(self._now_s + self._draw.expovariate(rate), lambda: self._come(number + 1))

    def _admit(self, name: str) -> None:
        replica = self._replicas[name]
        while replica.waiting and replica.num_free_rows:
            request, num_loads = replica.waiting[0], replica.slots.num_loads
            if not replica.slots.acquire(request.adapter):
                return
            replica.waiting.popleft()
            replica.num_free_rows -= 1
            replica.num_taken += 1
            is_hit, ready_s = replica.slots.num_loads == num_loads, self._now_s
            if not is_hit:
                ready_s = replica.loader_free_s = max(self._now_s, replica.loader_free_s) + self._fleet.loading_s
            if request.number >= self._num_warm:
                self._num_hits += is_hit
                self._ttft_s.append(ready_s + self._fleet.prefill_s - request.came_s)
            self._at(ready_s + self._fleet.answer_s, self._ending(name, request.adapter))

    def _ending(self, name: str, adapter: str) -> Callable[[], None]:
        def end() -> None:
            replica = self._replicas[name]
            replica.slots.release(adapter)
            replica.num_free_rows += 1
            self._loads[name] -= 1
            self._admit(name)

        return end


def simulate(fleet: Fleet) -> Outcome:
    """Run a fleet to its end; the same fleet always gives the same outcome."""
    return _Run(fleet).outcome()
