"""Shows and changes the adapters of this server: aliases, rollback, deletion, labels, and who did what.

A caller sees the names that match its patterns; any other name is answered exactly as one that does not exist. Reads
come from memory, changes wait for the database in threads. New versions come in by ``server.service.uploads``. Event
loop's thread only.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial

from adapters.errors import AdapterInUseError, AdapterNotFoundError
from adapters.registry import AdapterRecord, AuditRecord, Change, Registry, VersionRecord, VersionState
from adapters.registry_records import check_ready, find_version, no_adapter
from adapters.store import AdapterStore
from server.core.errors import InvalidArgumentError
from server.core.principal import Principal
from server.service.directory import AdapterDirectory, lease_word

_log = logging.getLogger(__name__)
_CARDS = ("card.md", "README.md")
MAX_NUM_AUDIT = 1000


@dataclass(frozen=True, slots=True)
class CatalogConfig:
    """Limits of uploads and deletions.

    Attributes:
        max_num_uploads: Most uploads at once.
        max_file_bytes: Largest weights file.
        upload_lease_s: Longest time from an upload's first byte to its version.
        allowed_sources: Prefixes of the sources adapters may be fetched from, as ``hf://`` or ``s3://bucket/folder/``.
        source_options: Scheme → what is needed to get there: end point, keys, token.
        drain_s: Longest wait of a forced deletion for requests that run on the version.

    Raises:
        InvalidArgumentError: If no upload could ever end well.
    """

    max_num_uploads: int = 4
    max_file_bytes: int = 512 * 1024 * 1024
    upload_lease_s: float = 900.0
    allowed_sources: tuple[str, ...] = ("hf://",)
    source_options: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what would refuse every upload."""
        if self.max_num_uploads < 1 or self.upload_lease_s <= 0:
            raise InvalidArgumentError("catalog.max_num_uploads and catalog.upload_lease_s must be over 0")


class AdapterCatalog:
    """The adapters of this server, as each caller may see and change them.

    Args:
        registry: Names to versions.
        store: Digests to files.
        directory: Knows what running requests use.
        drain_s: Longest wait of a forced deletion for them.
    """

    def __init__(self, registry: Registry, store: AdapterStore, directory: AdapterDirectory, *, drain_s: float) -> None:
        """Keep the parts."""
        self._registry = registry
        self._store = store
        self._directory = directory
        self._drain_s = drain_s

    async def list(self, principal: Principal, *, tag: str = "") -> tuple[AdapterRecord, ...]:
        """Return the adapters a caller sees, by name.

        Args:
            principal: Who asks.
            tag: Only adapters of which a version has this tag and is not retired; empty for all.
        """
        return tuple(
            record
            for record in self._registry.list()
            if principal.sees(record.name) and (not tag or _has_live(record, tag))
        )

    async def get(self, principal: Principal, name: str) -> AdapterRecord:
        """Return one adapter with its versions and aliases.

        Raises:
            AdapterNotFoundError: If there is none of this name for the caller.
        """
        _check_seen(principal, name)
        return self._registry.get(name)

    async def version(self, principal: Principal, name: str, version: int) -> VersionRecord:
        """Return one version.

        Raises:
            AdapterNotFoundError: If there is none of this name and number for the caller.
        """
        return find_version(await self.get(principal, name), version)

    async def card(self, principal: Principal, name: str, version: int) -> str:
        """Return what a version's maker wrote about it, in Markdown; empty when that is nothing.

        Raises:
            AdapterNotFoundError: If there is no such version for the caller.
            AdapterNotReadyError: If the version is not ready.
            StoreError: If its bytes cannot be read.
        """
        digest = check_ready(await self.version(principal, name, version)).digest
        return await asyncio.to_thread(self._read_card, digest)

    async def set_alias(
        self, principal: Principal, name: str, alias: str, version: int, idempotency_key: str = ""
    ) -> AdapterRecord:
        """Point an alias at a version and return the adapter.

        Raises:
            AdapterError: As :meth:`adapters.registry.Registry.set_alias`.
        """
        _check_seen(principal, name)
        change = change_by(principal, idempotency_key)
        return await asyncio.to_thread(self._registry.set_alias, name, alias, version, change)

    async def delete_alias(
        self, principal: Principal, name: str, alias: str, idempotency_key: str = ""
    ) -> AdapterRecord:
        """Remove an alias and return the adapter.

        Raises:
            AdapterError: As :meth:`adapters.registry.Registry.delete_alias`.
        """
        _check_seen(principal, name)
        return await asyncio.to_thread(self._registry.delete_alias, name, alias, change_by(principal, idempotency_key))

    async def rollback(self, principal: Principal, name: str, alias: str, idempotency_key: str = "") -> AdapterRecord:
        """Point an alias where it pointed before and return the adapter.

        Raises:
            AdapterError: As :meth:`adapters.registry.Registry.rollback`.
        """
        _check_seen(principal, name)
        return await asyncio.to_thread(self._registry.rollback, name, alias, change_by(principal, idempotency_key))

    async def delete(
        self, principal: Principal, name: str, version: int, *, force: bool = False, idempotency_key: str = ""
    ) -> AdapterRecord:
        """Retire a version for ever and return the adapter.

        With ``force`` no new request gets the version from now on, its aliases are dropped, and the answer comes when
        the requests that run on it here have ended, or have taken too long.

        Raises:
            AdapterInUseError: Without ``force``, if an alias points at it or a request runs on it, here or on a server
                that shares the registry.
            AdapterError: As :meth:`adapters.registry.Registry.retire`.
        """
        _check_seen(principal, name)
        if not force:
            await self._check_idle(name, version)
        retire = partial(self._registry.retire, reason=f"deleted by {principal.who}", force=force)
        record = await asyncio.to_thread(retire, name, version, change=change_by(principal, idempotency_key))
        if force and not await self._directory.idle(name, version, timeout_s=self._drain_s):
            _log.warning("requests still run on a deleted version", extra={"adapter": f"{name}:{version}"})
        return record

    async def label(
        self,
        principal: Principal,
        name: str,
        version: int,
        *,
        tags: tuple[str, ...] | None,
        description: str | None,
        idempotency_key: str = "",
    ) -> VersionRecord:
        """Give a version other tags or another description and return it; None leaves them.

        Raises:
            AdapterError: As :meth:`adapters.registry.Registry.label`.
        """
        _check_seen(principal, name)
        change = change_by(principal, idempotency_key)
        label = partial(self._registry.label, tags=tags, description=description, change=change)
        return await asyncio.to_thread(label, name, version)

    async def audit(self, principal: Principal, name: str | None = None, limit: int = 100) -> tuple[AuditRecord, ...]:
        """Return the newest changes, newest first: of one adapter, or of all a caller sees.

        Changes of no adapter, as those of keys, are for callers who see all.

        Raises:
            InvalidArgumentError: If ``limit`` is out of range.
            AdapterNotFoundError: If there is no adapter of this name for the caller.
            StoreError: If the database cannot be read.
        """
        if not 1 <= limit <= MAX_NUM_AUDIT:
            raise InvalidArgumentError(f"limit is from 1 to {MAX_NUM_AUDIT}", param="limit")
        if name is not None:
            await self.get(principal, name)

        def visible(changed: str) -> bool:
            return principal.sees_all or (changed != "" and principal.sees(changed))

        return await asyncio.to_thread(self._registry.audit, name=name, limit=limit, visible=visible)

    async def _check_idle(self, name: str, version: int) -> None:
        runs = self._directory.num_leases(name, version) > 0
        if runs or await asyncio.to_thread(self._registry.leased_elsewhere, lease_word(name, version)):
            raise AdapterInUseError(f"requests run on {name}:{version}; try again when they have ended, or force it")

    def _read_card(self, digest: str) -> str:
        for file_name in _CARDS:
            try:
                return self._store.read_file(digest, file_name).decode("utf-8", "replace")
            except AdapterNotFoundError:
                continue
        return ""


def _has_live(record: AdapterRecord, tag: str) -> bool:
    return any(tag in version.tags and version.state is not VersionState.RETIRED for version in record.versions)


def change_by(principal: Principal, idempotency_key: str) -> Change:
    """Return by whom a change is made, for the registry."""
    return Change(principal.who, principal.origin, idempotency_key)


def _check_seen(principal: Principal, name: str) -> None:
    if not principal.sees(name):
        raise no_adapter(name)


def _has_tag(record: AdapterRecord, tag: str) -> bool:
    return any(tag in version.tags for version in record.versions if version.state is VersionState.READY)
