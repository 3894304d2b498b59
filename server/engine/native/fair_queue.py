"""The waiting rows, shared out among tenants by the work they have had: whoever had least is next.

A tenant's counter grows by the work of its rows as they start. The answer's part is charged in full then and what was
not generated is given back at the row's end, so that nothing is counted token by token. Who comes back after having had
nothing in the engine goes on from the counter of whoever was next last: nobody saves up turns, and nobody pays for
times when the engine was free. Rows of one tenant, and those of all where there is one only, start in order of arrival.

Plain Python: no torch, no asyncio, no clock. Step thread only.

Source:
    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (https://arxiv.org/abs/2401.00588): the virtual
    token counter, and an output token's weight of two input tokens.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest

from server.engine.native.batch import Row

_OUTPUT_WEIGHT = 2


@dataclass(slots=True)
class _Tenant:
    """One tenant with rows in the engine.

    Attributes:
        counter: Work it has had, in input tokens.
        waiting: Its rows that have not started, in order.
        num_started: Its rows that have, and have not left.
    """

    counter: float
    waiting: deque[Row] = field(default_factory=deque)
    num_started: int = 0


class FairQueue:
    """Rows that wait."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._floor = 0.0

    def __len__(self) -> int:
        """Rows that wait."""
        return sum(len(tenant.waiting) for tenant in self._tenants.values())

    def __iter__(self) -> Iterator[Row]:
        """Return the rows tenant by tenant, each tenant's in order."""
        for tenant in self._tenants.values():
            yield from tenant.waiting

    def add(self, row: Row) -> None:
        """Put a row behind its tenant's."""
        name = row.request.tenant
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant(self._floor)
        tenant.waiting.append(row)

    def first(self, count: int) -> tuple[Row, ...]:
        """Return rows that are next, about in their order, as they stand; they stay."""
        by_turn = sorted((tenant for tenant in self._tenants.values() if tenant.waiting), key=_turn)
        heads = zip_longest(*(islice(tenant.waiting, count) for tenant in by_turn))
        return tuple(islice((row for turn in heads for row in turn if row is not None), count))

    def newest(self, tenant: str) -> Row | None:
        """Return the last row of a tenant, None if none of its rows waits; it stays."""
        found = self._tenants.get(tenant)
        return found.waiting[-1] if found is not None and found.waiting else None

    def pop(self, held: Collection[str] = ()) -> Row | None:
        """Take the row that is next of all tenants but those that are held, None if there is none."""
        ready = (tenant for name, tenant in self._tenants.items() if tenant.waiting and name not in held)
        tenant = min(ready, key=_turn, default=None)
        return None if tenant is None else tenant.waiting.popleft()

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """Return each tenant's rows that wait, and those that have started and not left."""
        return ((name, len(tenant.waiting), tenant.num_started) for name, tenant in self._tenants.items())

    def put_back(self, rows: Iterable[Row]) -> None:
        """Put rows back that were taken and did not start, before those that wait; in the order they were taken.

        Those that ended meanwhile are left out.
        """
        taken = list(rows)
        for row in reversed(taken):
            if not row.ended:
                self._tenants[row.request.tenant].waiting.appendleft(row)
        for row in taken:
            self._forget(row.request.tenant)

    def start(self, row: Row) -> None:
        """Charge a row that was taken and starts."""
        tenant = self._tenants[row.request.tenant]
        self._floor = max(self._floor, tenant.counter)
        tenant.num_started += 1
        tenant.counter += row.num_encoder_tokens + _OUTPUT_WEIGHT * row.request.sampling.max_new_tokens

    def leave(self, row: Row) -> None:
        """Give back what a started row was charged and did not take; call it once, at its end."""
        tenant = self._tenants[row.request.tenant]
        tenant.num_started -= 1
        tenant.counter -= _OUTPUT_WEIGHT * (row.request.sampling.max_new_tokens - len(row.token_ids))
        self._forget(row.request.tenant)

    def remove_ended(self) -> None:
        """Take out rows that ended while they waited."""
        for name, tenant in list(self._tenants.items()):
            if any(row.ended for row in tenant.waiting):
                tenant.waiting = deque(row for row in tenant.waiting if not row.ended)
                self._forget(name)

    def _forget(self, name: str) -> None:
        tenant = self._tenants.get(name)
        if tenant is not None and not tenant.waiting and not tenant.num_started:
            del self._tenants[name]


def _turn(tenant: _Tenant) -> tuple[float, float]:
    """Return what tenants with waiting rows are ordered by: least work first, then whose row came first."""
    return tenant.counter, tenant.waiting[0].arrival_s
