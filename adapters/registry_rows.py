"""From the registry's rows to its records, in a transaction of the caller. Only reads; knows no rules of changes.

Every function raises sqlalchemy.exc.SQLAlchemyError if the database cannot be read, and may be called from any thread,
with a connection of that thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.manifest import NAME_PATTERN, AdapterKind
from adapters.registry_records import AdapterRecord, VersionRecord, VersionState
from adapters.registry_schema import ADAPTERS, ALIASES, LEASES, REVISION, UPLOADS, VERSIONS

EVERYTHING = -1
"""A value of the change counter before every change."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed after some value of the change counter.

    Attributes:
        counter: Its value now.
        records: Adapters that changed, by name.
        names: Every name there is now, if one has gone since; else None.
    """

    counter: int
    records: Mapping[str, AdapterRecord]
    names: frozenset[str] | None


def read_adapter(connection: sa.Connection, name: str) -> AdapterRecord | None:
    """Return one adapter, or None if there is none of this name."""
    if not NAME_PATTERN.fullmatch(name):
        return None  # a caller's text may hold what a database cannot compare
    return _read(connection, sa.select(sa.literal(name))).get(name)


def read_changes(connection: sa.Connection, seen: int) -> Changes | None:
    """Return what changed after the counter was ``seen``; None if nothing did."""
    counter, removed = connection.execute(sa.select(REVISION.c.counter, REVISION.c.removed_counter)).one()
    if counter == seen:
        return None
    # A counter that went back is another database, or an older copy of it: nothing we know need be true.
    since = seen if seen < counter else EVERYTHING
    records = _read(connection, sa.select(ADAPTERS.c.name).where(ADAPTERS.c.counter > since))
    names = connection.execute(sa.select(ADAPTERS.c.name)).scalars() if removed > since or since == EVERYTHING else None
    return Changes(counter, records, None if names is None else frozenset(names))


def is_upload_expired(connection: sa.Connection, now_s: float) -> bool:
    """Return whether an upload ran out of time."""
    late = sa.select(UPLOADS.c.name).where(UPLOADS.c.expires_s < now_s)
    return connection.execute(late.limit(1)).first() is not None


def read_live_digests(connection: sa.Connection) -> frozenset[str]:
    """Return the digests of all versions that are not retired."""
    live = sa.select(VERSIONS.c.digest).where(VERSIONS.c.state != VersionState.RETIRED, VERSIONS.c.digest != "")
    return frozenset(connection.execute(live.distinct()).scalars())


def is_leased_elsewhere(connection: sa.Connection, instance: str, word: str, now_s: float) -> bool:
    """Return whether another server says that its requests use what the word stands for."""
    theirs = (LEASES.c.word == word, LEASES.c.instance != instance, LEASES.c.expires_s >= now_s)
    return connection.execute(sa.select(LEASES.c.word).where(*theirs).limit(1)).first() is not None


def version_of(row: Mapping[str, Any]) -> VersionRecord:
    """Return the version in a row, or in one that was kept as JSON."""
    kind = None if row["kind"] is None else AdapterKind(row["kind"])
    # JSON that was kept before the column was there has no metrics.
    lists = {"tags": tuple(row["tags"]), "metrics": tuple(row.get("metrics", ()))}
    return VersionRecord(**{**row, "kind": kind, "state": VersionState(row["state"]), **lists})


def _read(connection: sa.Connection, names: sa.Select[tuple[str]]) -> dict[str, AdapterRecord]:
    versions = sa.select(VERSIONS).where(VERSIONS.c.name.in_(names)).order_by(VERSIONS.c.version)
    aliases = sa.select(ALIASES.c.name, ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name.in_(names))
    found: dict[str, list[VersionRecord]] = {}
    for row in connection.execute(versions).mappings():
        found.setdefault(row["name"], []).append(version_of({**row}))
    pointing: dict[str, dict[str, int]] = {}
    for name, alias, version in connection.execute(aliases):
        pointing.setdefault(name, {})[alias] = version
    return {key: AdapterRecord(key, tuple(records), pointing.get(key, {})) for key, records in found.items()}
