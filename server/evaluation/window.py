"""The last finished requests, so that references may come later. Bounded by count and age; keeps no prompt.

Used from the event loop's thread only.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """What scoring needs of a finished request.

    Attributes:
        request_id: The request.
        text: What was answered.
        adapters: ``base``, ``name:version`` or two joined by ``+``.
        digests: Content addresses of those adapters.
        who: Who asked; others cannot find it.
        metrics: Names of what it is scored by; empty means the scorer's default.
    """

    request_id: str
    text: str
    adapters: str
    digests: tuple[str, ...] = ()
    who: str = ""
    metrics: tuple[str, ...] = ()


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
        self._requests: OrderedDict[tuple[str, str], tuple[float, FinishedRequest]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, finished: FinishedRequest) -> None:
        """Keep a request, dropping what is too old or too many."""
        now_s = self._clock()
        key = finished.who, finished.request_id
        self._requests.pop(key, None)
        self._requests[key] = (now_s, finished)
        while len(self._requests) > self._max_num_requests or self._oldest_s() < now_s - self._ttl_s:
            self._requests.popitem(last=False)

    def get(self, who: str, request_id: str) -> FinishedRequest | None:
        """Return a request of somebody, or None if it is unknown or too old."""
        added_s, finished = self._requests.get((who, request_id), (0.0, None))
        return finished if added_s >= self._clock() - self._ttl_s else None

    def _oldest_s(self) -> float:
        return next(iter(self._requests.values()))[0]
