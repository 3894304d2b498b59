"""The last finished requests, so that references may come later. Bounded by count and age; keeps no prompt.

A rollout's shadow has an id that nobody was told, so it is found by the request it ran beside.

Used from the event loop's thread only.
"""

from collections import OrderedDict
from collections.abc import Callable

from server.evaluation.outcome import Arm
from server.evaluation.records import Record


class FinishedWindow:
    """Finished requests by who asked and id; a new one under a known id replaces the old.

    Args:
        max_num_requests: Most requests kept; the oldest go first.
        ttl_s: Seconds a request is kept.
        clock: Returns seconds that never go back.
    """

    def __init__(self, max_num_requests: int, ttl_s: float, clock: Callable[[], float]) -> None:
        """Start empty."""
        self._max_num_requests = max_num_requests
        self._ttl_s = ttl_s
        self._clock = clock
        self._requests: OrderedDict[tuple[str, str], tuple[float, Record]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, record: Record) -> None:
        """Keep a request, dropping what is too old or too many."""
        now_s = self._clock()
        key = record.outcome.who, _shadow_id(record) if _is_shadow(record) else record.outcome.request_id
        self._requests.pop(key, None)
        self._requests[key] = (now_s, record)
        while len(self._requests) > self._max_num_requests or self._oldest_s() < now_s - self._ttl_s:
            self._requests.popitem(last=False)

    def get(self, who: str, request_id: str) -> Record | None:
        """Return a request of somebody, or None if it is unknown or too old."""
        added_s, record = self._requests.get((who, request_id), (0.0, None))
        return record if added_s >= self._clock() - self._ttl_s else None

    def shadow_of(self, record: Record) -> Record | None:
        """Return the shadow that ran beside a request of a rollout, if there is one that has finished."""
        if record.outcome.rollout is None or _is_shadow(record):
            return None
        return self.get(record.outcome.who, _shadow_id(record))

    def _oldest_s(self) -> float:
        return next(iter(self._requests.values()))[0]


def _is_shadow(record: Record) -> bool:
    return record.outcome.rollout is not None and record.outcome.rollout.arm is Arm.SHADOW


def _shadow_id(record: Record) -> str:
    """Return what a request and its shadow have in common; no request id, which has no space."""
    assert record.outcome.rollout is not None
    return f"{record.outcome.rollout.rollout_id} {record.outcome.input_sha256}"
