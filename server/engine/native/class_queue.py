"""The waiting rows of all classes: those of an earlier class are next, and within a class work is shared out fairly.

A class is a request's ``priority``, the smaller the earlier; each has a :class:`FairQueue` of its own. Earlier classes
go before later ones whoever has them, but not for ever: a class that was passed over so many times in a row that it has
waited for :data:`MAX_PASSES` starts of others has the next one. So a class with rows that wait gets at least one start
in so many, and takes no more than that from those before it.

Counted in starts and not in seconds, as rows that age by the clock would make a flood, whose rows wait for long, go
before others' fresh ones.

Plain Python: no torch, no asyncio, no clock. Step thread only.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from server.engine.native.batch import Row
from server.engine.native.fair_queue import FairQueue

MAX_PASSES = 16
"""Starts of earlier classes after which a class has a turn."""


class ClassQueue:
    """Rows that wait."""

    def __init__(self) -> None:
        self._classes: dict[int, FairQueue] = defaultdict(FairQueue)
        self._num_passes: Counter[int] = Counter()

    def __len__(self) -> int:
        """Rows that wait."""
        return sum(map(len, self._classes.values()))

    def __iter__(self) -> Iterator[Row]:
        """Return the rows class by class, each class's tenant by tenant."""
        for _, rows in sorted(self._classes.items()):
            yield from rows

    def add(self, row: Row) -> None:
        """Put a row behind those of its class and tenant."""
        if not self._of(row):
            del self._num_passes[row.request.priority]
        self._of(row).add(row)

    def first(self, count: int) -> tuple[Row, ...]:
        """Return rows that are next, about in their order, as they stand; they stay."""
        by_turn = (row for priority in self._by_turn() for row in self._classes[priority].first(count))
        return tuple(islice(by_turn, count))

    def newest(self, tenant: str, priority: int) -> Row | None:
        """Return the last row of a tenant in a class, None if none of its rows waits there; it stays."""
        return self._classes[priority].newest(tenant)

    def pop(self, held: Collection[str] = ()) -> Row | None:
        """Take the row that is next of all tenants but those that are held, None if there is none."""
        rows = (self._classes[priority].pop(held) for priority in self._by_turn())
        return next((row for row in rows if row is not None), None)

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Return, by tenant, how many rows wait, and how many have started and not left."""
        waiting, started = Counter[str](), Counter[str]()
        for rows in self._classes.values():
            for tenant, num_waiting, num_started in rows.counts():
                waiting[tenant] += num_waiting
                started[tenant] += num_started
        return waiting, started

    def put_back(self, rows: Iterable[Row]) -> None:
        """Put rows back that were taken and did not start; in the order they were taken. See :class:`FairQueue`."""
        taken: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            taken[row.request.priority].append(row)
        for priority, those in taken.items():
            self._classes[priority].put_back(those)

    def start(self, row: Row) -> None:
        """Charge a row that was taken and starts."""
        self._of(row).start(row)
        own = row.request.priority
        del self._num_passes[own]
        for priority, rows in self._classes.items():
            # One that is empty now may have rows that were taken and are to be put back: its turn is not over.
            if priority > own and len(rows):
                self._num_passes[priority] += 1

    def leave(self, row: Row) -> None:
        """Give back what a started row was charged and did not take; call it once, at its end."""
        self._of(row).leave(row)

    def remove_ended(self) -> None:
        """Take out rows that ended while they waited."""
        for rows in self._classes.values():
            rows.remove_ended()

    def _of(self, row: Row) -> FairQueue:
        return self._classes[row.request.priority]

    def _by_turn(self) -> list[int]:
        """Return the classes with rows that wait, by turn."""
        waiting = (priority for priority, rows in self._classes.items() if len(rows))
        return sorted(waiting, key=lambda priority: (self._num_passes[priority] < MAX_PASSES, priority))
