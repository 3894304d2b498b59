"""Which adapters are resident on the device: slot tables, least-recently-used eviction, pins.

Plain Python: what a slot holds is opaque here. Used on the step thread only. Slots in use and pinned slots are never
evicted. A row takes all the adapters it needs at once or none of them, so two rows never wait for each other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from adapters.manifest import AdapterRole
from server.core.errors import ResourceExhaustedError
from server.engine.base import ResolvedAdapter
from server.engine.native.batch import Row

Payload = TypeVar("Payload")


@dataclass(slots=True)
class Slot(Generic[Payload]):
    """One resident adapter.

    Attributes:
        payload: Its weights on the device; None while they load.
        num_users: Rows that run with it or wait for it to load.
        num_pins: How often it is pinned.
        last_used: Tick of its last use; the smallest is evicted first.
    """

    payload: Payload | None
    num_users: int
    num_pins: int
    last_used: int


class SlotTable(Generic[Payload]):
    """The slots of one adapter role.

    Args:
        num_slots: How many adapters fit.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._slots: dict[str, Slot[Payload]] = {}
        self._tick = 0
        self._promised: str | None = None
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
            return digest != self._promised
        return len(self._slots) < self._num_slots or self._evictable() is not None

    def take(self, digest: str) -> bool:
        """Count one more user of an adapter and return whether its weights must be loaded first."""
        assert self.can_take(digest)
        self._tick += 1
        slot = self._slots.get(digest)
        if slot is None:
            self._make_room()
            self._slots[digest] = Slot(None, num_users=1, num_pins=0, last_used=self._tick)
            return True
        slot.num_users += 1
        slot.last_used = self._tick
        return False

    def release(self, digest: str) -> None:
        """Count one user less; an adapter that failed to load is no longer there, which is fine."""
        slot = self._slots.get(digest)
        if slot is not None:
            slot.num_users -= 1

    def pin(self, digest: str) -> None:
        """Keep an adapter that is in use or resident until :meth:`unpin`."""
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

    def promise(self) -> None:
        """Close the least recently used slot to new users, so that it empties for the row that waits longest."""
        candidates = {digest: slot for digest, slot in self._slots.items() if not slot.num_pins}
        self._promised = min(candidates, key=lambda digest: candidates[digest].last_used, default=None)

    def withdraw_promise(self) -> None:
        """Open a closed slot again."""
        self._promised = None

    def _evictable(self) -> str | None:
        idle = {
            digest: slot
            for digest, slot in self._slots.items()
            if slot.payload is not None and not slot.num_users and not slot.num_pins
        }
        return min(idle, key=lambda digest: idle[digest].last_used, default=None)

    def _make_room(self) -> None:
        if len(self._slots) < self._num_slots:
            return
        victim = self._evictable()
        assert victim is not None
        del self._slots[victim]
        self.num_evictions += 1


class ResidentAdapters(Generic[Payload]):
    """The slot tables of every role, and which rows hold what.

    Args:
        num_slots: Slots by adapter role.
        load: Begins to load an adapter's weights elsewhere; :meth:`loaded` or :meth:`failed` answers later.
    """

    def __init__(self, num_slots: Mapping[AdapterRole, int], load: Callable[[ResolvedAdapter], None]) -> None:
        self._tables = {role: SlotTable[Payload](count) for role, count in num_slots.items()}
        self._load = load
        self._holders: dict[str, tuple[ResolvedAdapter, ...]] = {}
        self._someone_blocked = False

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests on the device."""
        return tuple(digest for table in self._tables.values() for digest in table.resident)

    @property
    def num_loads(self) -> int:
        """Loads since start."""
        return sum(table.num_loads for table in self._tables.values())

    @property
    def num_evictions(self) -> int:
        """Evictions since start."""
        return sum(table.num_evictions for table in self._tables.values())

    def payload(self, adapter: ResolvedAdapter) -> Payload:
        """Return the weights of an adapter that a running row holds."""
        slot = self._tables[adapter.kind.role].find(adapter.digest)
        assert slot is not None
        assert slot.payload is not None
        return slot.payload

    def begin_pass(self) -> None:
        """Begin to ask rows in order of arrival; the first one without a slot gets the next that empties."""
        self._someone_blocked = False
        for table in self._tables.values():
            table.withdraw_promise()

    def admit(self, row: Row) -> bool:
        """Whether all the row's adapters are on the device; takes slots and begins loading where it can.

        Raises:
            ResourceExhaustedError: If every slot is pinned by other adapters.
        """
        holder = row.request.request_id
        if holder not in self._holders and not self._hold(holder, row.adapters):
            return False
        return all(self._is_loaded(adapter) for adapter in row.adapters)

    def pin(self, adapter: ResolvedAdapter) -> bool:
        """Pin an adapter, loading it if need be; return whether it is loaded already.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
        """
        table = self._tables[adapter.kind.role]
        if not table.can_take(adapter.digest) and table.find(adapter.digest) is None:
            raise ResourceExhaustedError(
                f"every slot for {adapter.kind.role} is pinned or in use; unpin one or try again later"
            )
        if table.find(adapter.digest) is None and table.take(adapter.digest):
            table.release(adapter.digest)
            self._load(adapter)
        table.pin(adapter.digest)
        return self._is_loaded(adapter)

    def unpin(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        for table in self._tables.values():
            table.unpin(digest)

    def release(self, row: Row) -> None:
        """Give back what an ended row held."""
        for adapter in self._holders.pop(row.request.request_id, ()):
            self._tables[adapter.kind.role].release(adapter.digest)

    def loaded(self, adapter: ResolvedAdapter, payload: Payload) -> None:
        """Install weights that were loading."""
        self._tables[adapter.kind.role].loaded(adapter.digest, payload)

    def failed(self, adapter: ResolvedAdapter) -> frozenset[str]:
        """Forget an adapter that could not be loaded; return the ids of the requests that waited for it."""
        self._tables[adapter.kind.role].drop(adapter.digest)
        return frozenset(holder for holder, held in self._holders.items() if adapter in held)

    def _hold(self, holder: str, adapters: tuple[ResolvedAdapter, ...]) -> bool:
        full = [adapter for adapter in adapters if not self._tables[adapter.kind.role].can_take(adapter.digest)]
        for adapter in full:
            self._give_way(adapter)
        if full:
            self._someone_blocked = True
            return False
        self._holders[holder] = adapters
        for adapter in adapters:
            if self._tables[adapter.kind.role].take(adapter.digest):
                self._load(adapter)
        return True

    def _give_way(self, adapter: ResolvedAdapter) -> None:
        table = self._tables[adapter.kind.role]
        if table.all_pinned():
            raise ResourceExhaustedError(f"every slot for {adapter.kind.role} is pinned; this adapter cannot be loaded")
        if not self._someone_blocked:
            table.promise()

    def _is_loaded(self, adapter: ResolvedAdapter) -> bool:
        slot = self._tables[adapter.kind.role].find(adapter.digest)
        return slot is not None and slot.payload is not None
