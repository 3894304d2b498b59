"""A run dealt out among the processes that send it. Knows neither processes nor clients.

Open loop, every n-th request of the schedule goes to one process, so that each sees the same load at any time; closed
loop, every n-th user does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from loadtest.arrivals import ClosedLoop, generator
from loadtest.examples import read_examples
from loadtest.runner import Users
from loadtest.scenario import Scenario
from loadtest.workload import PlannedRequest, arrivals_and_kinds, plan

# Users ask from a pool, over again when it ends; this many different questions are enough.
_POOL = 4096


@dataclass(frozen=True, slots=True)
class Share:
    """What one process sends.

    Attributes:
        planned: Requests in order of time, or what users ask.
        users: The users of a closed loop; None if it is open.
        max_in_flight: Most requests in flight.
    """

    planned: tuple[PlannedRequest, ...]
    users: Users | None
    max_in_flight: int

    def as_json(self) -> dict[str, Any]:
        """Return the share as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the share that :meth:`as_json` wrote."""
        planned = (PlannedRequest(**one | {"adapters": tuple(one["adapters"])}) for one in values["planned"])
        users = values["users"]
        if users is not None:
            users = Users(**users | {"numbers": tuple(users["numbers"])})
        return cls(tuple(planned), users, values["max_in_flight"])


def deal(scenario: Scenario) -> list[Share]:
    """Decide everything that a scenario sends, and deal it out.

    Raises:
        ValueError: If its data or a trace cannot be used, or nothing would be sent.
    """
    count = scenario.client.num_processes
    most = _split(scenario.client.max_in_flight, count)
    examples = read_examples(scenario.data)
    if isinstance(scenario.arrivals, ClosedLoop):
        kinds = scenario.adapters.draw(generator("adapters", scenario.seed), _POOL)
        pool = plan([0.0] * _POOL, kinds, examples, scenario.seed, scenario.lengths)
        users = _users(scenario, scenario.arrivals)
        return [Share(tuple(pool[i::count]), one, most[i]) for i, one in enumerate(users)]
    times_s, kinds = arrivals_and_kinds(
        scenario.arrivals,
        scenario.adapters,
        scenario.seed,
        duration_s=scenario.duration_s,
        num_requests=scenario.num_requests,
        warm_up_s=scenario.warm_up.duration_s,
    )
    if not times_s or times_s[-1] < 0:
        raise ValueError("no request arrives within this duration at this rate")
    planned = plan(times_s, kinds, examples, scenario.seed, scenario.lengths)
    return [Share(tuple(planned[i::count]), None, most[i]) for i in range(count)]


def _users(scenario: Scenario, arrivals: ClosedLoop) -> list[Users]:
    count = scenario.client.num_processes
    numbers = range(arrivals.num_users)
    limits: Sequence[int | None] = [None] * count
    if scenario.num_requests is not None:
        limits = _split(scenario.num_requests, count)
    return [
        Users(
            numbers=tuple(numbers[i::count]),
            think_s=arrivals.think_s,
            seed=scenario.seed,
            start_s=-scenario.warm_up.duration_s,
            duration_s=scenario.duration_s,
            num_requests=limits[i],
        )
        for i in range(count)
    ]


def _split(total: int, count: int) -> list[int]:
    """Return parts that add up, as even as can be; the first are the larger."""
    return [total // count + (index < total % count) for index in range(count)]
