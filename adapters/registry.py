"""Names → versions → digests, with aliases: SQLAlchemy over SQLite by default, any other database by its URL.

A version never changes once it is there. Every change is one transaction, so a crash loses nothing that was answered.
Knows no bytes (``adapters.store`` does).

Reads are answered from a snapshot in memory. Our own writes are in it at once; those of other processes are seen within
a second, when the change counter in the database is looked at again. Methods may be called from any thread; a read that
looks at the database, and every write, waits for it.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from adapters.digest import is_digest
from adapters.errors import AdapterNotFoundError, AdapterNotReadyError, InvalidAdapterReferenceError, StoreError
from adapters.manifest import AdapterKind, AdapterManifest, check_name
from adapters.prompting import check_template
from adapters.registry_schema import ALIASES, REVISION, VERSIONS, open_database
from adapters.strict_json import show

DEFAULT_ALIAS = "stable"

_T = TypeVar("_T")
_MAX_STALENESS_S = 1.0
_MAX_ATTEMPTS = 5
_REFERENCE = re.compile(r"(?P<name>[^:@]{1,63})(?::(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[^:@]{1,63}))?")


class VersionState(StrEnum):
    """Where a version is in its life; only ``ready`` is served."""

    UPLOADING = "uploading"
    VALIDATING = "validating"
    READY = "ready"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """An adapter as a caller names it: at most one of version and alias."""

    name: str
    version: int | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an adapter.

    Attributes:
        name: Adapter name.
        version: Counts from 1.
        digest: Content address of its files.
        kind: Adapter family.
        state: Where it is in its life.
        reason: Why it is in that state, for people; may be empty.
        rank: Largest rank of a LoRA; 0 for soft prompts.
        num_virtual_tokens: Rows of a soft prompt; 0 for LoRA.
        size_bytes: Of all files.
        task: What it does.
        licence: SPDX identifier.
        description: One sentence for people.
        scores: Metric → value measured at training.
        prompt_template: Template that wraps the text; empty means the base's.
        created_s: Unix time of registration.
    """

    name: str
    version: int
    digest: str
    kind: AdapterKind
    state: VersionState
    reason: str = ""
    rank: int = 0
    num_virtual_tokens: int = 0
    size_bytes: int = 0
    task: str = ""
    licence: str = ""
    description: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    prompt_template: str = ""
    created_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter: its versions, oldest first, and its aliases → version."""

    name: str
    versions: tuple[VersionRecord, ...]
    aliases: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Everything at one value of the change counter, trusted until a monotonic time."""

    counter: int
    adapters: Mapping[str, AdapterRecord]
    fresh_until_s: float


def parse_reference(reference: str) -> AdapterReference:
    """Read ``name``, ``name:3`` or ``name@alias``.

    Raises:
        InvalidAdapterReferenceError: If it is anything else.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InvalidAdapterReferenceError(f"{show(reference)} is no adapter; write name, name:version or name@alias")
    version, alias = match["version"], match["alias"]
    name = check_name(match["name"])
    return AdapterReference(name, int(version) if version else None, check_name(alias) if alias else None)


class Registry:
    """The registry.

    Args:
        url: Database URL, ``sqlite:////path/registry.db`` for instance; made and migrated as needed.

    Raises:
        StoreError: If the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        """Open the database and bring its schema up to date."""
        with _as_store_error():
            self._reader, self._writer = open_database(url)
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None

    def close(self) -> None:
        """Close the database's connections; no other method may be called after."""
        self._reader.dispose()

    def resolve(self, reference: str) -> VersionRecord:
        """Return the version a reference means now; a bare name means ``@stable``, else the newest ready version.

        Raises:
            InvalidAdapterReferenceError: If the reference is not well formed.
            AdapterNotFoundError: If there is no such name, version or alias.
            AdapterNotReadyError: If the version is known but not ready, or none is.
            StoreError: If the database cannot be read.
        """
        wanted = parse_reference(reference)
        record = self.get(wanted.name)
        if wanted.version is not None:
            found = _version(record, wanted.version)
        elif wanted.alias is not None or DEFAULT_ALIAS in record.aliases:
            found = _aliased(record, wanted.alias or DEFAULT_ALIAS)
        else:
            ready = [version for version in record.versions if version.state is VersionState.READY]
            found = (ready or record.versions)[-1]
        return _ready(found)

    def get(self, name: str) -> AdapterRecord:
        """Return one adapter.

        Raises:
            AdapterNotFoundError: If there is none of this name.
            StoreError: If the database cannot be read.
        """
        record = self._current().adapters.get(name)
        if record is None:
            raise AdapterNotFoundError(f"there is no adapter {show(name)}")
        return record

    def list(self) -> tuple[AdapterRecord, ...]:
        """Return all adapters by name.

        Raises:
            StoreError: If the database cannot be read.
        """
        adapters = self._current().adapters
        return tuple(adapters[name] for name in sorted(adapters))

    def add_version(
        self, name: str, digest: str, manifest: AdapterManifest, size_bytes: int, alias: str | None = None
    ) -> VersionRecord:
        """Add a ready version and return it; bytes the name already has give the version they have.

        Args:
            name: Adapter name; may be new.
            digest: Content address of its files, already in the store.
            manifest: What it is; its own name does not count.
            size_bytes: Of all files.
            alias: Alias to point at the version in the same transaction, or None.

        Raises:
            InvalidAdapterReferenceError: If name, alias or digest is not well formed.
            PromptTemplateError: If the manifest's template is not sound.
            StoreError: If the database cannot be written.
        """
        check_name(name)
        if alias is not None:
            check_name(alias)
        if not is_digest(digest):
            raise InvalidAdapterReferenceError("a digest has 64 lower-case hex characters")
        if manifest.prompt_template:
            check_template(manifest.prompt_template)

        def add(connection: sa.Connection) -> int:
            version = _version_of_digest(connection, name, digest)
            if version is None:
                version = _next_version(connection, name)
                row = _row(name, version, digest, manifest, size_bytes)
                connection.execute(sa.insert(VERSIONS).values(row))
            if alias is not None:
                _point(connection, name, alias, version)
            return version

        version, record = self._change(name, add)
        return _version(record, version)

    def set_alias(self, name: str, alias: str, version: int) -> AdapterRecord:
        """Point an alias at a ready version and return the adapter.

        Raises:
            InvalidAdapterReferenceError: If the alias is not well formed.
            AdapterNotFoundError: If there is no such adapter or version.
            AdapterNotReadyError: If the version is not ready.
            StoreError: If the database cannot be written.
        """
        check_name(alias)

        def move(connection: sa.Connection) -> None:
            record = _read(connection, name).get(name)
            if record is None:
                raise AdapterNotFoundError(f"there is no adapter {show(name)}")
            _ready(_version(record, version))
            _point(connection, name, alias, version)

        return self._change(name, move)[1]

    def _current(self) -> _Snapshot:
        snapshot = self._snapshot
        if snapshot is not None and time.monotonic() < snapshot.fresh_until_s:
            return snapshot
        with self._lock:
            return self._refresh()

    def _refresh(self) -> _Snapshot:
        snapshot, fresh_until_s = self._snapshot, time.monotonic() + _MAX_STALENESS_S
        with _as_store_error(), self._reader.begin() as connection:
            counter = connection.execute(sa.select(REVISION.c.counter)).scalar_one()
            if snapshot is not None and snapshot.counter == counter:
                snapshot = replace(snapshot, fresh_until_s=fresh_until_s)
            else:
                snapshot = _Snapshot(counter, _read(connection), fresh_until_s)
        self._snapshot = snapshot
        return snapshot

    def _change(self, name: str, work: Callable[[sa.Connection], _T]) -> tuple[_T, AdapterRecord]:
        """Do ``work`` in one transaction and return what it returned and the adapter as it is then."""
        for _ in range(_MAX_ATTEMPTS):
            # On a server database another process may have taken the version number since it was read.
            with suppress(IntegrityError):
                return self._change_once(name, work)
        raise StoreError("the registry's database is too busy; try again")

    def _change_once(self, name: str, work: Callable[[sa.Connection], _T]) -> tuple[_T, AdapterRecord]:
        with _as_store_error(), self._writer.begin() as connection:
            result = work(connection)
            connection.execute(sa.update(REVISION).values(counter=REVISION.c.counter + 1))
            counter = connection.execute(sa.select(REVISION.c.counter)).scalar_one()
            record = _read(connection, name)[name]
        with self._lock:
            snapshot = self._snapshot
            if snapshot is not None and snapshot.counter < counter:
                # With another change in between, only the database knows all of it.
                is_next = snapshot.counter == counter - 1
                adapters = {**snapshot.adapters, name: record}
                self._snapshot = replace(snapshot, counter=counter, adapters=adapters) if is_next else None
        return result, record


def _row(name: str, version: int, digest: str, manifest: AdapterManifest, size_bytes: int) -> dict[str, object]:
    record = VersionRecord(
        name=name,
        version=version,
        digest=digest,
        kind=manifest.kind,
        state=VersionState.READY,
        rank=manifest.rank,
        num_virtual_tokens=manifest.num_virtual_tokens,
        size_bytes=size_bytes,
        task=manifest.task,
        licence=manifest.licence,
        description=manifest.description,
        scores=dict(manifest.scores),
        prompt_template=manifest.prompt_template,
        created_s=time.time(),
    )
    return asdict(record)


def _version_of_digest(connection: sa.Connection, name: str, digest: str) -> int | None:
    mine = (VERSIONS.c.name == name) & (VERSIONS.c.digest == digest)
    return connection.execute(sa.select(VERSIONS.c.version).where(mine)).scalar_one_or_none()


def _next_version(connection: sa.Connection, name: str) -> int:
    newest = connection.execute(sa.select(sa.func.max(VERSIONS.c.version)).where(VERSIONS.c.name == name)).scalar_one()
    return int(newest or 0) + 1


def _point(connection: sa.Connection, name: str, alias: str, version: int) -> None:
    mine = (ALIASES.c.name == name) & (ALIASES.c.alias == alias)
    connection.execute(sa.delete(ALIASES).where(mine))
    connection.execute(sa.insert(ALIASES).values(name=name, alias=alias, version=version))


def _read(connection: sa.Connection, name: str | None = None) -> dict[str, AdapterRecord]:
    """Return every adapter, or the one of a name, as the transaction sees them."""
    versions, aliases = sa.select(VERSIONS).order_by(VERSIONS.c.version), sa.select(ALIASES)
    if name is not None:
        versions, aliases = versions.where(VERSIONS.c.name == name), aliases.where(ALIASES.c.name == name)
    found: dict[str, list[VersionRecord]] = {}
    for row in connection.execute(versions).mappings():
        fields = {**row, "kind": AdapterKind(row["kind"]), "state": VersionState(row["state"])}
        found.setdefault(row["name"], []).append(VersionRecord(**fields))
    pointing: dict[str, dict[str, int]] = {}
    for row in connection.execute(aliases).mappings():
        pointing.setdefault(row["name"], {})[row["alias"]] = row["version"]
    return {key: AdapterRecord(key, tuple(records), pointing.get(key, {})) for key, records in found.items()}


def _version(record: AdapterRecord, number: int) -> VersionRecord:
    for version in record.versions:
        if version.version == number:
            return version
    raise AdapterNotFoundError(f"adapter {show(record.name)} has no version {number}")


def _aliased(record: AdapterRecord, alias: str) -> VersionRecord:
    if alias not in record.aliases:
        raise AdapterNotFoundError(f"adapter {show(record.name)} has no alias {show(alias)}")
    return _version(record, record.aliases[alias])


def _ready(version: VersionRecord) -> VersionRecord:
    if version.state is not VersionState.READY:
        because = f": {version.reason}" if version.reason else ""
        raise AdapterNotReadyError(f"{version.name}:{version.version} is {version.state}, not ready{because}")
    return version


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (SQLAlchemyError, CommandError, OSError) as error:
        raise StoreError(f"the registry's database cannot be used: {type(error).__name__}") from error
