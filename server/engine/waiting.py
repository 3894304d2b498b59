"""How many requests of each tenant and class wait for an engine, and who gives way where there is room for no more.

Counts only; whose lock it is used under is the engine's business. A class is a request's ``priority``: the smaller, the
earlier.
"""

from collections import Counter
from typing import NamedTuple

from server.core.errors import Refusal, ResourceExhaustedError
from server.engine.base import EngineRequest
from server.engine.pace import Pace


class Place(NamedTuple):
    """A place in the queue, held by the newest waiting request of a tenant in a class."""

    tenant: str
    priority: int


def place_of(request: EngineRequest) -> Place:
    """Return the place that a request takes."""
    return Place(request.tenant, request.priority)


class WaitingCounts:
    """A bounded queue's places, shared out among the tenants that wait.

    Args:
        max_num: Most requests that wait.
        max_wait_s: Longest wait to be expected of whoever enters; 0 for any.

    Attributes:
        num: Requests that wait.
    """

    def __init__(self, max_num: int, max_wait_s: float = 0.0) -> None:
        """Nobody waits."""
        self._max_num, self._max_wait_s = max_num, max_wait_s
        self._by_place: Counter[Place] = Counter()
        self.num = 0

    def enter(self, place: Place) -> Place | None:
        """Count one more request; return whose place must be given up for it, None if there is room.

        That place is not counted any more: whoever ends the request that held it counts it again before.

        Raises:
            ResourceExhaustedError: If the queue is full and nobody has to give way.
        """
        displaced = self.displaced_by(place) if self.num >= self._max_num else None
        if displaced is not None:
            self.leave(displaced)
        self.count(place)
        return displaced

    def displaced_by(self, place: Place) -> Place | None:
        """Return whose place a request would get in a full queue.

        It is taken from the tenant that has most of them, and there from the last class, so that a flood costs its own
        tenant only. A tenant that has as many as anybody gives up one of its own for a request of an earlier class.

        Raises:
            ResourceExhaustedError: If nobody has to give way.
        """
        by_tenant: Counter[str] = Counter()
        for held, num in self._by_place.items():
            by_tenant[held.tenant] += num
        heaviest = max(by_tenant, key=lambda name: by_tenant[name], default=place.tenant)
        gives_way = heaviest if by_tenant[heaviest] > by_tenant[place.tenant] + 1 else place.tenant
        last = max((held for held in self._by_place if held.tenant == gives_way), default=None)
        if last is None or (gives_way == place.tenant and last.priority <= place.priority):
            raise queue_is_full(self._max_num)
        return last

    def count(self, place: Place) -> None:
        """Count one more request without asking for room."""
        self._change(place, 1)

    def leave(self, place: Place) -> None:
        """Count one less: a request was started, or ended."""
        self._change(place, -1)

    def check_in_time(self, request: EngineRequest, pace: Pace | None, now_s: float, num_free: int) -> None:
        """Do nothing if a request that is about to enter may expect its turn, and its answer by its deadline.

        Args:
            request: The request.
            pace: The engine's, where that is known.
            now_s: Monotonic time.
            num_free: Requests that could start at once.

        Raises:
            DeadlineExceededError: If others have to wait, and what the engine did lately says that it would be late.
            ResourceExhaustedError: If that says that the wait would be longer than any is to be.
        """
        if pace is None or (request.deadline_s is None and not self._max_wait_s):
            return
        num_ahead = max(0, self.num_before(place_of(request)) - num_free)
        if request.deadline_s is not None:
            assert request.sampling.max_new_tokens is not None
            pace.check_waiting(request.deadline_s - now_s, request.sampling.max_new_tokens, num_ahead)
        excess_s = pace.wait_s(num_ahead) - self._max_wait_s
        if self._max_wait_s and excess_s > 0:
            raise ResourceExhaustedError(
                f"{num_ahead} requests are before it, which takes more than {self._max_wait_s:g} s; try again later",
                retry_after_s=excess_s,
                refusal=Refusal.TOO_LONG_A_WAIT,
            )

    def emptied(self) -> "WaitingCounts":
        """Return the same queue with nobody in it."""
        return WaitingCounts(self._max_num, self._max_wait_s)

    def num_before(self, place: Place) -> int:
        """Return how many requests surely start before a new one: earlier classes', and each tenant's turns in its own.

        Other tenants have no more turns than this one has requests, and those that have fewer requests have fewer.
        """
        num_own = self._by_place[place]
        return sum(
            num if held.priority < place.priority else min(num, num_own)
            for held, num in self._by_place.items()
            if held.priority <= place.priority
        )

    def _change(self, place: Place, by: int) -> None:
        self.num += by
        self._by_place[place] += by
        if not self._by_place[place]:
            del self._by_place[place]


def queue_is_full(max_num: int) -> ResourceExhaustedError:
    """Return what is answered to whoever finds no place."""
    return ResourceExhaustedError(f"the queue is full ({max_num} waiting); try again later", refusal=Refusal.QUEUE_FULL)


def gave_way(max_num: int) -> ResourceExhaustedError:
    """Return what is answered to whoever has to give up his place."""
    return ResourceExhaustedError(
        f"the queue is full ({max_num} waiting), and this request gave way to another; try again later",
        refusal=Refusal.GAVE_WAY,
    )
