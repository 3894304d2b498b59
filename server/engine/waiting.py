"""How many requests of each tenant wait for an engine, and who gives way where there is room for no more.

Counts only; whose lock it is used under is the engine's business.
"""

from collections import Counter
from collections.abc import Mapping

from server.core.errors import ResourceExhaustedError


class WaitingCounts:
    """A bounded queue's places, shared out among the tenants that wait.

    Args:
        max_num: Most requests that wait.
    """

    def __init__(self, max_num: int) -> None:
        """Nobody waits."""
        self._max_num = max_num
        self._by_tenant: Counter[str] = Counter()

    @property
    def num(self) -> int:
        """Requests that wait."""
        return self._by_tenant.total()

    def enter(self, tenant: str) -> str | None:
        """Count one more request; return the tenant whose newest waiting one must end for it, None if there is room.

        In a full queue the place is taken from who has most of them, so that a flood costs its own tenant only.

        Raises:
            ResourceExhaustedError: If the queue is full and nobody has more of it than this tenant would have.
        """
        displaced = None
        if self.num >= self._max_num:
            displaced = who_gives_way(self._by_tenant, tenant)
            if displaced is None:
                raise queue_is_full(self._max_num)
        self._by_tenant[tenant] += 1
        return displaced

    def leave(self, tenant: str) -> None:
        """Count one less: a request was started, or ended."""
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


def who_gives_way(num_waiting: Mapping[str, int], tenant: str) -> str | None:
    """Return the tenant with most places if it has more than another would have with one more, else None."""
    heaviest = max(num_waiting, key=lambda name: num_waiting[name], default=tenant)
    return heaviest if num_waiting.get(heaviest, 0) > num_waiting.get(tenant, 0) + 1 else None


def queue_is_full(max_num: int) -> ResourceExhaustedError:
    """Return what is answered to whoever finds no place, or has to give his up."""
    return ResourceExhaustedError(f"the queue of {max_num} requests is full; try again later")
