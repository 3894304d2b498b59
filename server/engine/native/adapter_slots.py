"""Which adapters are resident on the device, which rows hold them, and who gets the next slot.

Plain Python: what a slot holds is opaque here. Used on the step thread only.

Who gets a slot. Rows are asked in the order of the queue, at every step; *older* is what is before there:

1. A row whose adapters are all resident may run at once, also past older rows that wait for a slot: rows of one adapter
   share its slot, so the batch groups by adapter while slots are short.
2. A row that lacks a slot takes any that is empty or idle. Older rows are asked first, so the oldest gets it.
3. Once the oldest row without a slot has been refused for :data:`PATIENCE_STEPS` steps, the slot whose rows have the
   fewest tokens left to make is closed to new rows. It is empty after at most ``max_new_tokens`` steps of these rows,
   and the oldest row without a slot takes it.

So the oldest row without a slot waits at most its patience and one generation, and those behind it one generation more
each: no adapter starves, whatever arrives. Without patience (closing at once) hot adapters would take turns instead of
sharing, and the median row would wait.

A row that needs two adapters takes both at once or none, so that two rows never wait for each other; only the oldest
row without a slot keeps one while it waits for the other. It goes on keeping it when rows of an earlier class are asked
before it from then on, and while it does, no other row begins to: there is one such row at a time.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from adapters.manifest import AdapterRole
from server.core.errors import ResourceExhaustedError
from server.engine.base import ResolvedAdapter
from server.engine.native.batch import Row
from server.engine.native.slot_table import SlotTable

Payload = TypeVar("Payload")

PATIENCE_STEPS = 128
"""Steps for which a row without a slot lets rows of resident adapters pass before it has a slot closed for it."""


class ResidentAdapters(Generic[Payload]):
    """The slot tables of every role, and which rows hold what.

    Args:
        num_slots: Slots by adapter role.
        load: Begins to load an adapter's weights; :meth:`loaded` or :meth:`failed` answers, at once or later.
        evicted: Takes what a slot held when it is given to another adapter.
    """

    def __init__(
        self,
        num_slots: Mapping[AdapterRole, int],
        load: Callable[[ResolvedAdapter], None],
        evicted: Callable[[str, Payload], None] = lambda _digest, _payload: None,
    ) -> None:
        self._tables = {role: SlotTable[Payload](count, evicted) for role, count in num_slots.items()}
        self._load = load
        self._held: dict[str, tuple[ResolvedAdapter, ...]] = {}
        self._refused_since: dict[str, int] = {}
        self._pass = 0
        self._oldest_refused: str | None = None
        self._keeper: str | None = None
        self._refused: set[str] = set()

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
        slot = self._table(adapter).find(adapter.digest)
        assert slot is not None
        assert slot.payload is not None
        return slot.payload

    def begin_pass(self) -> None:
        """Begin to ask rows in order of arrival."""
        self._pass += 1
        self._oldest_refused = None
        # Slots only fill up during a pass: what was refused once need not be asked for again.
        self._refused.clear()
        for table in self._tables.values():
            table.reopen()

    def admit(self, row: Row) -> bool:
        """Whether all the row's adapters are on the device; takes slots and begins loading where it can.

        Raises:
            ResourceExhaustedError: If every slot is pinned by other adapters.
        """
        holder = row.request.request_id
        for adapter in row.adapters:
            if adapter.digest in self._refused:
                self._refused_since.setdefault(holder, self._pass)
                return False
        if len(self._held.get(holder, ())) < len(row.adapters) and not self._hold(row):
            return False
        return all(self._is_loaded(adapter) for adapter in row.adapters)

    def prefetch(self, rows: Iterable[Row]) -> list[ResolvedAdapter]:
        """Load the adapters of rows that wait for a seat into slots nobody needs; return those that found none.

        A slot is taken if it is empty, or idle with an adapter that none of these rows wants.
        """
        wanted = {adapter.digest: adapter for row in rows for adapter in row.adapters}
        left: list[ResolvedAdapter] = []
        for digest, adapter in wanted.items():
            table = self._table(adapter)
            if table.find(digest) is not None:
                continue
            if not table.has_room(keep=wanted):
                left.append(adapter)
            elif table.take(digest, keep=wanted):
                self._load(adapter)
        return left

    def pin(self, adapter: ResolvedAdapter) -> bool:
        """Pin an adapter, loading it if need be; return whether it is loaded already.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
        """
        table = self._table(adapter)
        if table.find(adapter.digest) is None:
            if not table.has_room():
                raise ResourceExhaustedError(
                    f"every slot for {adapter.kind.role} is pinned or in use; unpin one or try again later"
                )
            table.take(adapter.digest)
            self._load(adapter)
        table.pin(adapter.digest)
        return self._is_loaded(adapter)

    def unpin(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        for table in self._tables.values():
            table.unpin(digest)

    def release(self, row: Row) -> None:
        """Give back what an ended row held."""
        self._refused_since.pop(row.request.request_id, None)
        if self._keeper == row.request.request_id:
            self._keeper = None
        for adapter in self._held.pop(row.request.request_id, ()):
            self._table(adapter).release(adapter.digest, row)

    def loaded(self, adapter: ResolvedAdapter, payload: Payload) -> None:
        """Install weights that were loading."""
        self._table(adapter).loaded(adapter.digest, payload)

    def failed(self, adapter: ResolvedAdapter) -> None:
        """Forget an adapter that could not be loaded; whoever waits for it must be released."""
        self._table(adapter).drop(adapter.digest)

    def _table(self, adapter: ResolvedAdapter) -> SlotTable[Payload]:
        return self._tables[adapter.kind.role]

    def _hold(self, row: Row) -> bool:
        """Take the slots the row lacks: all of them or none, but what there is for the oldest row without a slot."""
        holder = row.request.request_id
        held = self._held.get(holder, ())
        missing = [adapter for adapter in row.adapters if adapter not in held]
        full = [adapter for adapter in missing if not self._table(adapter).can_take(adapter.digest)]
        if full and not self._may_keep(holder, full):
            return False
        taken = tuple(adapter for adapter in missing if adapter not in full)
        self._held[holder] = (*held, *taken)
        if full and self._held[holder]:
            self._keeper = holder
        elif self._keeper == holder:
            self._keeper = None
        for adapter in taken:
            if self._table(adapter).take(adapter.digest, row):
                self._load(adapter)
        return not full

    def _may_keep(self, holder: str, full: list[ResolvedAdapter]) -> bool:
        """Record that a row lacks slots, close some if it is the oldest such row and waited long.

        Returns:
            Whether the row may keep the slots it has or can have while it waits for the others.

        Raises:
            ResourceExhaustedError: If they will never be free.
        """
        for adapter in full:
            if self._table(adapter).all_pinned():
                raise ResourceExhaustedError(
                    f"every slot for {adapter.kind.role} is pinned; this adapter cannot be loaded"
                )
        self._refused.update(adapter.digest for adapter in full)
        since = self._refused_since.setdefault(holder, self._pass)
        is_oldest = self._oldest_refused is None
        if is_oldest:
            self._oldest_refused = holder
            if self._pass - since >= PATIENCE_STEPS:
                for adapter in full:
                    self._table(adapter).close_soonest()
        return self._keeper == holder or (is_oldest and self._keeper is None)

    def _is_loaded(self, adapter: ResolvedAdapter) -> bool:
        slot = self._table(adapter).find(adapter.digest)
        return slot is not None and slot.payload is not None
