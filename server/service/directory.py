"""From an adapter reference to a servable version, once a request, and the leases that keep a version from deletion.

The registry and the store are synchronous and are asked in threads; what they said is kept for a short while, so that
a request for a known adapter costs one look into a dictionary. Any change of names through this server empties that
memory at once; changes another server makes in a shared registry are seen when it has run out.

Event loop's thread only.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.manifest import AdapterKind, AdapterRole
from adapters.registry import Registry, VersionRecord
from adapters.store import AdapterStore
from server.core.errors import InvalidArgumentError
from server.core.outputs import AdapterUse
from server.engine.base import ResolvedAdapter

_MAX_NUM_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class ServableAdapter:
    """A version ready to serve.

    Attributes:
        use: What the caller is told.
        resolved: What the engine is given.
        prompt_template: The adapter's template; empty means the base's.
    """

    use: AdapterUse
    resolved: ResolvedAdapter
    prompt_template: str


class AdapterDirectory:
    """Finds and leases adapter versions.

    Args:
        registry: Names to versions.
        store: Digests to files.
        remember_s: Seconds an answer of the registry is trusted.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        registry: Registry,
        store: AdapterStore,
        *,
        remember_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing known and nothing leased."""
        self._registry = registry
        self._store = store
        self._remember_s = remember_s
        self._clock = clock
        self._known: dict[str, tuple[float, ServableAdapter]] = {}
        self._lookups: dict[str, asyncio.Task[ServableAdapter]] = {}
        self._leases: Counter[str] = Counter()

    async def lease(self, references: tuple[str, ...]) -> tuple[ServableAdapter, ...]:
        """Find each reference and lease its version; whoever leases must :meth:`release`.

        Raises:
            InvalidArgumentError: If there are two adapters of one role, or more than two.
            AdapterError: If a reference is not well formed, unknown or not ready.
        """
        if len(references) > len(AdapterRole):
            raise InvalidArgumentError("at most one weight adapter and one soft prompt or prefix", param="adapters")
        adapters = tuple([await self._find(reference) for reference in references])
        if len({adapter.resolved.kind.role for adapter in adapters}) < len(adapters):
            kinds = " and ".join(adapter.use.kind for adapter in adapters)
            raise InvalidArgumentError(
                f"two adapters of the same role ({kinds}); at most one weight adapter and one soft prompt or prefix",
                param="adapters",
            )
        self._leases.update(adapter.use.digest for adapter in adapters)
        return adapters

    def release(self, adapters: Iterable[ServableAdapter]) -> None:
        """Give leases back."""
        for adapter in adapters:
            self._leases[adapter.use.digest] -= 1
            if self._leases[adapter.use.digest] <= 0:
                del self._leases[adapter.use.digest]

    def num_leases(self, digest: str) -> int:
        """Return how many requests use a version now."""
        return self._leases[digest]

    def forget(self) -> None:
        """Ask the registry again from now on; to be called after every change of names."""
        self._known.clear()
        self._lookups.clear()

    async def _find(self, reference: str) -> ServableAdapter:
        until_s, known = self._known.get(reference, (0.0, None))
        if known is not None and self._clock() < until_s:
            return known
        lookup = self._lookups.get(reference)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(reference))
            self._lookups[reference] = lookup
            lookup.add_done_callback(partial(self._remember, reference))
        # One caller who goes away must not take the lookup from the others who wait for it.
        return await asyncio.shield(lookup)

    async def _look_up(self, reference: str) -> ServableAdapter:
        record = await asyncio.to_thread(self._registry.resolve, reference)
        path = await asyncio.to_thread(self._store.local_path, record.digest)
        return _servable(record, path)

    def _remember(self, reference: str, lookup: "asyncio.Task[ServableAdapter]") -> None:
        failed = lookup.cancelled() or lookup.exception() is not None
        if self._lookups.get(reference) is not lookup:
            return  # names changed while it ran
        del self._lookups[reference]
        if not failed:
            if len(self._known) >= _MAX_NUM_REMEMBERED:
                self._known.clear()
            self._known[reference] = (self._clock() + self._remember_s, lookup.result())


def _servable(record: VersionRecord, path: Path) -> ServableAdapter:
    kind = AdapterKind(record.kind)
    return ServableAdapter(
        use=AdapterUse(record.name, record.version, record.digest, str(kind)),
        resolved=ResolvedAdapter(record.digest, kind, path, record.num_virtual_tokens, record.rank),
        prompt_template=record.prompt_template,
    )
