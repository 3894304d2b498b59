"""Which adapters the fake engine pretends to hold: a few slots, least recently used out first. Knows no engine."""

from collections import OrderedDict


class FakeSlots:
    """Slots for one kind of adapter.

    Args:
        capacity: How many digests fit at once.
    """

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._num_users: OrderedDict[str, int] = OrderedDict()
        self.num_loads = 0
        self.num_evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests held now, least recently used first."""
        return tuple(self._num_users)

    def acquire(self, digest: str) -> bool:
        """Hold ``digest`` for one user, evicting an unused one if need be; False when every slot is in use."""
        if digest not in self._num_users and not self._make_room():
            return False
        if digest not in self._num_users:
            self._num_users[digest] = 0
            self.num_loads += 1
        self._num_users[digest] += 1
        self._num_users.move_to_end(digest)
        return True

    def release(self, digest: str) -> None:
        """Give up one hold; the adapter stays until its slot is needed."""
        if self._num_users.get(digest, 0) > 0:
            self._num_users[digest] -= 1

    def _make_room(self) -> bool:
        if len(self._num_users) < self._capacity:
            return True
        idle = next((digest for digest, num_users in self._num_users.items() if num_users == 0), None)
        if idle is None:
            return False
        del self._num_users[idle]
        self.num_evictions += 1
        return True
