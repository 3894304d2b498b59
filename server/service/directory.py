"""From an adapter reference to a servable version, once a request, and the leases that running requests hold.

A lease is taken without waiting: names are resolved and the bytes pinned in memory, so neither a promotion nor a
deletion comes between. Only bytes that this server has not looked at before are verified, or fetched from a shared
store, in threads of their own, while the lease is held already. A request keeps the version it resolved to, whatever
becomes of the name.

Event loop's thread only.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.manifest import AdapterRole
from adapters.registry import Registry, VersionRecord, parse_reference
from adapters.registry_records import no_adapter
from adapters.scoring.plugins import metrics_of
from adapters.store import AdapterStore
from server.core.errors import InvalidArgumentError
from server.core.outputs import AdapterUse
from server.core.principal import Principal
from server.engine.base import ResolvedAdapter
from server.evaluation.outcome import RolloutPart

# Enough to fetch beside each other; what is fetched once is not fetched by the others who wait for it.
_MAX_NUM_FETCHES = 4


@dataclass(frozen=True, slots=True)
class ServableAdapter:
    """A version ready to serve.

    Attributes:
        use: What the caller is told.
        resolved: What the engine is given.
        prompt_template: The adapter's template; empty means the base's.
        metrics: What its answers are scored by.
        rollout: The rollout that chose this version; None outside of one.
    """

    use: AdapterUse
    resolved: ResolvedAdapter
    prompt_template: str
    metrics: tuple[str, ...] = ()
    rollout: RolloutPart | None = None


@dataclass(frozen=True, slots=True)
class _Version:
    """What is leased: a version, not its bytes, which another name may share."""

    name: str
    number: int


class AdapterDirectory:
    """Finds and leases adapter versions.

    Args:
        registry: Names to versions.
        store: Digests to files.
    """

    def __init__(self, registry: Registry, store: AdapterStore) -> None:
        """Start with nothing leased."""
        self._registry = registry
        self._store = store
        self._leases: Counter[_Version] = Counter()
        self._idle: dict[_Version, asyncio.Event] = {}
        self._fetches: dict[str, asyncio.Future[Path]] = {}
        self._pool = ThreadPoolExecutor(_MAX_NUM_FETCHES, thread_name_prefix="adapter-fetch")

    async def lease(self, principal: Principal, references: Sequence[str]) -> tuple[ServableAdapter, ...]:
        """Find each reference and lease its version; whoever leases must :meth:`release`, once.

        Does not wait when the versions' bytes are here and known to be good. Nothing stays leased when it raises.

        Args:
            principal: Who asks; names that do not exist for it are not found.
            references: As the caller wrote them.

        Raises:
            InvalidArgumentError: If there are two adapters of one role, or more than two.
            AdapterError: If a reference is not well formed, unknown or not ready, or its bytes cannot be read.
        """
        if len(references) > len(AdapterRole):
            raise InvalidArgumentError("at most one weight adapter and one soft prompt or prefix", param="adapters")
        records = [self._resolve(principal, reference) for reference in references]
        _check_roles(records)
        for record in records:
            self._leases[_Version(record.name, record.version)] += 1
            self._store.pin(record.digest)
        try:
            return tuple([_servable(record, await self._path(record.digest)) for record in records])
        except BaseException:
            for record in records:
                self._let_go(_Version(record.name, record.version), record.digest)
            raise

    def release(self, adapters: Iterable[ServableAdapter]) -> None:
        """Give leases back."""
        for adapter in adapters:
            self._let_go(_Version(adapter.use.name, adapter.use.version), adapter.use.digest)

    def num_leases(self, name: str, version: int) -> int:
        """Return how many requests use a version now."""
        return self._leases[_Version(name, version)]

    def leased(self) -> frozenset[str]:
        """Return the lease words of all versions in use, for the servers that share the registry."""
        return frozenset(lease_word(version.name, version.number) for version in self._leases)

    async def idle(self, name: str, version: int, *, timeout_s: float) -> bool:
        """Wait until no request uses a version; return whether that came to be in time."""
        leased = _Version(name, version)
        if leased not in self._leases:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.setdefault(leased, asyncio.Event()).wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Begin no fetch any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _resolve(self, principal: Principal, reference: str) -> VersionRecord:
        if not principal.sees_all and not principal.sees(name := parse_reference(reference).name):
            raise no_adapter(name)
        return self._registry.resolve(reference)

    async def _path(self, digest: str) -> Path:
        # Asked again after a fetch: one that began before our pin may have been evicted since.
        while (path := self._store.verified_path(digest)) is None:
            # One caller who goes away must not take the fetch from the others who wait for it.
            await asyncio.shield(self._fetches.get(digest) or self._fetch(digest))
        return path

    def _fetch(self, digest: str) -> "asyncio.Future[Path]":
        fetch = asyncio.get_running_loop().run_in_executor(self._pool, self._store.local_path, digest)
        self._fetches[digest] = fetch
        fetch.add_done_callback(partial(self._fetched, digest))
        return fetch

    def _fetched(self, digest: str, fetch: "asyncio.Future[Path]") -> None:
        del self._fetches[digest]
        if not fetch.cancelled():
            fetch.exception()  # seen, also when all who waited are gone

    def _let_go(self, version: _Version, digest: str) -> None:
        self._store.unpin(digest)
        self._leases[version] -= 1
        if not self._leases[version]:
            del self._leases[version]
            if version in self._idle:
                self._idle.pop(version).set()


def lease_word(name: str, version: int) -> str:
    """Return what the servers of one registry call a version in use.

    Not its digest: whether bytes are in use under another name is nobody's business.
    """
    return hashlib.sha256(f"{name}:{version}".encode()).hexdigest()


def _check_roles(records: Sequence[VersionRecord]) -> None:
    kinds = [record.kind for record in records if record.kind is not None]
    if len({kind.role for kind in kinds}) < len(records):
        raise InvalidArgumentError(
            f"two adapters of the same role ({' and '.join(kinds)}); "
            "at most one weight adapter and one soft prompt or prefix",
            param="adapters",
        )


def _servable(record: VersionRecord, path: Path) -> ServableAdapter:
    assert record.kind is not None, "a ready version has a kind"
    return ServableAdapter(
        use=AdapterUse(record.name, record.version, record.digest, str(record.kind)),
        resolved=ResolvedAdapter(record.digest, record.kind, path, record.num_virtual_tokens, record.rank),
        prompt_template=record.prompt_template,
        metrics=metrics_of(record.metrics, record.task),
    )
