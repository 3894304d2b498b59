"""The slots of one adapter role: users, pins, eviction.

A slot that a row uses or waits for, a pinned slot and a slot that still loads are never evicted; of the others, the
least recently used one is. Plain Python: what a slot holds is opaque here, and so is who may take it when. Used on the
step thread only.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.engine.native.batch import Row

Payload = TypeVar("Payload")


@dataclass(slots=True)
class Slot(Generic[Payload]):
    """One resident adapter.

    Attributes:
        payload: Its weights on the device; None while they load.
        users: Rows that run with it or wait for it, by request id.
        num_pins: How often it is pinned.
        last_used: Tick of its last use; the smallest is evicted first.
    """

    payload: Payload | None = None
    users: dict[str, Row] = field(default_factory=dict)
    num_pins: int = 0
    last_used: int = 0

    @property
    def num_tokens_left(self) -> int:
        """Steps until its rows have ended, at most."""
        return max((row.num_tokens_left for row in self.users.values()), default=0)


class SlotTable(Generic[Payload]):
    """The slots of one adapter role.

    Args:
        num_slots: How many adapters fit.
        evicted: Takes what a slot held when it is given to another adapter.
    """

    def __init__(self, num_slots: int, evicted: Callable[[str, Payload], None]) -> None:
        self._num_slots = num_slots
        self._evicted = evicted
        self._slots: dict[str, Slot[Payload]] = {}
        self._tick = 0
        self._closed: str | None = None
        self.num_loads = 0
        self.num_evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests of the adapters whose weights are on the device."""
        return tuple(digest for digest, slot in self._slots.items() if slot.payload is not None)

    def find(self, digest: str) -> Slot[Payload] | None:
        """Return the slot of an adapter, loading or loaded, or None."""
        return self._slots.get(digest)

    def can_take(self, digest: str) -> bool:
        """Whether :meth:`take` would succeed now."""
        if digest in self._slots:
            return digest != self._closed
        return self.has_room()

    def has_room(self, keep: Collection[str] = ()) -> bool:
        """Whether a slot is empty, or idle with an adapter that is not among ``keep``."""
        return len(self._slots) < self._num_slots or self._evictable(keep) is not None

    def take(self, digest: str, user: Row | None = None, keep: Collection[str] = ()) -> bool:
        """Give an adapter a slot, for a row or ahead of any; return whether its weights must be loaded first."""
        self._tick += 1
        slot = self._slots.get(digest)
        is_absent = slot is None
        if slot is None:
            self._make_room(keep)
            slot = self._slots[digest] = Slot()
        slot.last_used = self._tick
        if user is not None:
            slot.users[user.request.request_id] = user
        return is_absent

    def release(self, digest: str, user: Row) -> None:
        """End a row's use; an adapter that failed to load is no longer there, which is fine."""
        slot = self._slots.get(digest)
        if slot is not None:
            slot.users.pop(user.request.request_id, None)

    def pin(self, digest: str) -> None:
        """Keep an adapter that has a slot until :meth:`unpin`."""
        self._slots[digest].num_pins += 1

    def unpin(self, digest: str) -> None:
        """Take one pin back; unknown digests are ignored."""
        slot = self._slots.get(digest)
        if slot is not None and slot.num_pins:
            slot.num_pins -= 1

    def loaded(self, digest: str, payload: Payload) -> None:
        """Install the weights of an adapter that was loading."""
        self._slots[digest].payload = payload
        self.num_loads += 1

    def drop(self, digest: str) -> None:
        """Forget an adapter whose loading failed."""
        del self._slots[digest]

    def all_pinned(self) -> bool:
        """Whether no slot can ever become free by itself."""
        return len(self._slots) == self._num_slots and all(slot.num_pins for slot in self._slots.values())

    def close_soonest(self) -> None:
        """Close the slot that empties soonest to new rows."""
        candidates = {digest: slot for digest, slot in self._slots.items() if not slot.num_pins}
        self._closed = min(candidates, key=lambda digest: candidates[digest].num_tokens_left, default=None)

    def reopen(self) -> None:
        """Open a closed slot again."""
        self._closed = None

    def _evictable(self, keep: Collection[str] = ()) -> str | None:
        idle = {
            digest: slot
            for digest, slot in self._slots.items()
            if slot.payload is not None and not slot.users and not slot.num_pins and digest not in keep
        }
        return min(idle, key=lambda digest: idle[digest].last_used, default=None)

    def _make_room(self, keep: Collection[str]) -> None:
        if len(self._slots) < self._num_slots:
            return
        victim = self._evictable(keep)
        assert victim is not None
        payload = self._slots.pop(victim).payload
        assert payload is not None
        self.num_evictions += 1
        self._evicted(victim, payload)
