"""From an adapter reference to a servable version, once a request, and the leases that running requests hold.

A lease is taken without waiting: names are resolved and the bytes pinned in memory, so neither a promotion nor a
deletion comes between. Only bytes that this server has not looked at before are verified, or fetched from a shared
store, in threads of their own, while the lease is held already. A request keeps the version it resolved to, whatever
becomes of the name.

Event loop's thread only.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adapters.errors import AdapterError
from adapters.manifest import AdapterRole
from adapters.registry import DEFAULT_ALIAS, Registry, VersionRecord, parse_reference
from adapters.registry_records import no_adapter
from adapters.scoring.plugins import metrics_of
from adapters.store import AdapterStore
from server.core.errors import InvalidArgumentError
from server.core.outputs import AdapterUse
from server.core.principal import Principal
from server.engine.base import ResolvedAdapter
from server.evaluation.outcome import RolloutPart
from server.evaluation.rollouts.routing import RouteTable

_log = logging.getLogger(__name__)
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


@dataclass(frozen=True, slots=True)
class _Found:
    """What a reference came to."""

    record: VersionRecord
    rollout: RolloutPart | None = None


class AdapterDirectory:
    """Finds and leases adapter versions.

    Args:
        registry: Names to versions.
        store: Digests to files.
        routes: Where requests go because of running rollouts; asked once a request.
    """

    def __init__(self, registry: Registry, store: AdapterStore, routes: Callable[[], RouteTable] = RouteTable) -> None:
        """Start with nothing leased."""
        self._registry = registry
        self._store = store
        self._routes = routes
        self._leases: Counter[_Version] = Counter()
        self._idle: dict[_Version, asyncio.Event] = {}
        self._fetches: dict[str, asyncio.Future[Path]] = {}
        self._pool = ThreadPoolExecutor(_MAX_NUM_FETCHES, thread_name_prefix="adapter-fetch")

    async def lease(
        self, principal: Principal, references: Sequence[str], routing_key: str = ""
    ) -> tuple[ServableAdapter, ...]:
        """Find each reference and lease its version; whoever leases must :meth:`release`, once.

        Does not wait when the versions' bytes are here and known to be good. Nothing stays leased when it raises.
        Of an alias with a running rollout, the candidate may be leased; where it cannot be had, the alias's version is.

        Args:
            principal: Who asks; names that do not exist for it are not found.
            references: As the caller wrote them.
            routing_key: What the request is dealt by in a rollout.

        Raises:
            InvalidArgumentError: If there are two adapters of one role, or more than two.
            AdapterError: If a reference is not well formed, unknown or not ready, or its bytes cannot be read.
        """
        if len(references) > len(AdapterRole):
            raise InvalidArgumentError("at most one weight adapter and one soft prompt or prefix", param="adapters")
        found = [_Found(self._resolve(principal, reference)) for reference in references]
        routes = self._routes()
        routed = self._routed(routes, references, found, routing_key) if routes else found
        _check_roles([each.record for each in routed])
        try:
            return await self._lease(routed)
        except AdapterError as error:
            if [each.record for each in routed] == [each.record for each in found]:
                raise
            _log.warning("a rollout's candidate cannot be had, so the alias's version serves: %s", error.message)
            return await self._lease(found)

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

    def _routed(
        self, routes: RouteTable, references: Sequence[str], found: list[_Found], routing_key: str
    ) -> list[_Found]:
        """Return what is to be leased: a request takes part in one rollout at most, that of its first reference."""
        for place, (reference, each) in enumerate(zip(references, found, strict=True)):
            asked = parse_reference(reference)
            if asked.version is not None:
                continue
            record = each.record
            route = routes.route(record.name, asked.alias or DEFAULT_ALIAS, record.version, routing_key)
            if route is None:
                continue
            if route.version != record.version:
                try:
                    record = self._registry.resolve(f"{record.name}:{route.version}")
                except AdapterError:  # retired a moment ago; the rollout ends with the next look at it
                    return found
            return [*found[:place], _Found(record, route.part), *found[place + 1 :]]
        return found

    async def _lease(self, found: Sequence[_Found]) -> tuple[ServableAdapter, ...]:
        for each in found:
            self._leases[_Version(each.record.name, each.record.version)] += 1
            self._store.pin(each.record.digest)
        try:
            return tuple(
                [
                    replace(_servable(each.record, await self._path(each.record.digest)), rollout=each.rollout)
                    for each in found
                ]
            )
        except BaseException:
            for each in found:
                self._let_go(_Version(each.record.name, each.record.version), each.record.digest)
            raise

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
