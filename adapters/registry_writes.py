"""The rules of changes: what each does to the rows, in a transaction of the caller that has locked the registry.

The functions that take a :class:`Write` return the number of the version they were about, changed or not. All raise
sqlalchemy.exc.SQLAlchemyError if the database cannot be used. What raises, changes nothing: the caller rolls back.
Knows no threads, no snapshot and no idempotency keys.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from adapters import audit
from adapters.errors import AdapterInUseError, AdapterNotReadyError, RollbackError
from adapters.manifest import AdapterManifest
from adapters.registry_records import (
    AdapterRecord,
    Change,
    VersionState,
    aliased_version,
    check_ready,
    check_tags,
    find_version,
    no_adapter,
)
from adapters.registry_schema import ADAPTERS, ALIASES, REVISION, UPLOADS, VERSIONS
from adapters.strict_json import show

_MAX_NUM_EARLIER = 100


@dataclass(frozen=True, slots=True)
class Write:
    """One change under way.

    Attributes:
        connection: In a transaction that has locked the registry.
        name: Adapter it is about.
        before: The adapter before it; None if there is none of this name.
        change: By whom it is made.
        now_s: Unix time.
    """

    connection: sa.Connection
    name: str
    before: AdapterRecord | None
    change: Change
    now_s: float

    @property
    def adapter(self) -> AdapterRecord:
        """The adapter before the change.

        Raises:
            AdapterNotFoundError: If there is none of this name.
        """
        if self.before is None:
            raise no_adapter(self.name)
        return self.before

    def update(self, version: int, **values: object) -> None:
        """Change columns of a version."""
        self.connection.execute(sa.update(VERSIONS).where(*_is(VERSIONS, self.name, version)).values(values))

    def log(self, action: str, version: int, digest: str, *, alias: str = "", detail: str = "") -> None:
        """Write the audit row."""
        record = audit.AuditRecord(
            time_s=self.now_s,
            who=self.change.who,
            origin=self.change.origin,
            action=action,
            name=self.name,
            version=version,
            alias=alias,
            digest=digest,
            detail=detail,
        )
        audit.write(self.connection, record)


def lock(connection: sa.Connection) -> int:
    """Wait for other changes to end, keep them out until the transaction ends, and return the change counter."""
    counter: int = connection.execute(sa.select(REVISION.c.counter).with_for_update()).scalar_one()
    return counter


def bump(connection: sa.Connection, counter: int, names: Iterable[str]) -> None:
    """Say that names changed: set the change counter, and theirs, to ``counter``; names without versions go."""
    values = {"counter": counter}
    for name in names:
        connection.execute(sa.delete(ADAPTERS).where(ADAPTERS.c.name == name))
        if connection.execute(sa.select(VERSIONS.c.name).where(VERSIONS.c.name == name).limit(1)).first() is None:
            values["removed_counter"] = counter
        else:
            connection.execute(sa.insert(ADAPTERS).values(name=name, counter=counter))
    connection.execute(sa.update(REVISION).values(values))


def begin(write: Write, instance: str, taken: int, lease_s: float) -> int:
    """Make a version whose upload begins; its number is greater than all there are, and than ``taken``."""
    newest = write.before.versions[-1].version if write.before else 0
    number = max(newest, taken) + 1
    row: dict[str, object] = {
        **dict.fromkeys(("task", "licence", "description", "prompt_template", "digest"), ""),
        **dict.fromkeys(("rank", "num_virtual_tokens", "size_bytes"), 0),
        "name": write.name,
        "version": number,
        "kind": None,
        "state": VersionState.UPLOADING,
        "reason": f"upload by {write.change.who}",
        "scores": {},
        "tags": [],
        "metrics": [],
        "created_s": write.now_s,
    }
    write.connection.execute(sa.insert(VERSIONS).values(row))
    upload = {"name": write.name, "version": number, "instance": instance, "expires_s": write.now_s + lease_s}
    write.connection.execute(sa.insert(UPLOADS).values(upload))
    return number


def mark_validating(write: Write, instance: str, version: int) -> int:
    """Say that all bytes of an upload have arrived.

    Raises:
        AdapterNotReadyError: If the upload ran out of time.
    """
    _check_begun(write, instance, version)
    write.update(version, state=VersionState.VALIDATING)
    return version


@dataclass(frozen=True, slots=True)
class Completion:
    """What an upload turned out to be.

    Attributes:
        digest: Content address of its files, in the store.
        manifest: What it is; its own name does not count.
        size_bytes: Of all files.
        alias: Alias to point at the version, or None.
        tags: Words to find it by.
    """

    digest: str
    manifest: AdapterManifest
    size_bytes: int
    alias: str | None
    tags: tuple[str, ...]


def complete(write: Write, instance: str, version: int, done: Completion) -> int:
    """Make an upload ready, or give the live version that has its bytes, with the tags it has not yet.

    Raises:
        AdapterNotReadyError: If the upload ran out of time.
        InvalidAdapterReferenceError: If the live version would get too many tags.
    """
    _check_begun(write, instance, version)
    record = write.adapter
    same = [v for v in record.versions if v.digest == done.digest and v.state is VersionState.READY]
    write.connection.execute(sa.delete(UPLOADS).where(*_is(UPLOADS, write.name, version)))
    if same:
        write.connection.execute(sa.delete(VERSIONS).where(*_is(VERSIONS, write.name, version)))
        version = same[0].version
        write.update(version, tags=[*check_tags((*same[0].tags, *done.tags))])
    else:
        write.update(version, **_filled(done))
    if done.alias is not None:
        _point(write, done.alias, version)
    detail = "these bytes were there" if same else ""
    write.log("upload", version, done.digest, alias=done.alias or "", detail=detail)
    return version


def remove_uploads(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> set[str]:
    """Remove the versions of some uploads and return their names."""
    lost = connection.execute(sa.select(UPLOADS.c.name, UPLOADS.c.version).where(*which)).all()
    for name, version in lost:
        connection.execute(sa.delete(UPLOADS).where(*_is(UPLOADS, name, version)))
        connection.execute(sa.delete(VERSIONS).where(*_is(VERSIONS, name, version)))
    return {name for name, _ in lost}


def upload_is(name: str, version: int, instance: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the condition for the row of one upload of a server."""
    return *_is(UPLOADS, name, version), UPLOADS.c.instance == instance


def set_alias(write: Write, alias: str, version: int, expected: int | None = None) -> int:
    """Point an alias at a ready version; where one is expected, only if it points at that one now.

    Raises:
        AdapterNotFoundError: If there is no such adapter or version.
        AdapterNotReadyError: If the version is not ready.
    """
    target = check_ready(find_version(write.adapter, version))
    before = write.adapter.aliases.get(alias)
    if before != version and expected in (None, before):
        _point(write, alias, version)
        detail = f"was at version {before}" if before else ""
        write.log("set_alias", version, target.digest, alias=alias, detail=detail)
    return version


def delete_alias(write: Write, alias: str) -> int:
    """Remove an alias with its earlier targets.

    Raises:
        AdapterNotFoundError: If there is no such adapter or alias.
    """
    version = aliased_version(write.adapter, alias)
    write.connection.execute(sa.delete(ALIASES).where(*_is_alias(write.name, alias)))
    write.log("delete_alias", version, find_version(write.adapter, version).digest, alias=alias)
    return version


def rollback(write: Write, alias: str) -> int:
    """Point an alias at its latest earlier target that is still ready, and forget the later ones.

    Raises:
        AdapterNotFoundError: If there is no such adapter or alias.
        RollbackError: If no earlier target is ready.
    """
    current = aliased_version(write.adapter, alias)
    digests = {v.version: v.digest for v in write.adapter.versions if v.state is VersionState.READY}
    earlier = _earlier(write, alias)
    while earlier and (earlier[-1] == current or earlier[-1] not in digests):
        earlier.pop()
    if not earlier:
        raise RollbackError(f"alias {show(alias)} of adapter {show(write.name)} has no earlier version that is ready")
    version = earlier.pop()
    _move(write, alias, version, earlier)
    write.log("rollback", version, digests[version], alias=alias, detail=f"was at version {current}")
    return version


def retire(write: Write, version: int, reason: str, *, force: bool) -> int:
    """Retire a ready version; one that is retired stays as it is. ``force`` drops the aliases that point at it.

    Raises:
        AdapterNotFoundError: If there is no such adapter or version.
        AdapterNotReadyError: If it is still uploaded.
        AdapterInUseError: If an alias points at it, without ``force``.
    """
    target = find_version(write.adapter, version)
    if target.state is VersionState.RETIRED:
        return version
    check_ready(target)
    names = ", ".join(f"@{alias}" for alias, number in sorted(write.adapter.aliases.items()) if number == version)
    if names and not force:
        raise AdapterInUseError(f"{names} points at {write.name}:{version}; point it elsewhere first, or use force")
    write.connection.execute(sa.delete(ALIASES).where(*_is(ALIASES, write.name, version)))
    write.update(version, state=VersionState.RETIRED, reason=reason)
    write.log("retire", version, target.digest, detail=f"{reason}; dropped {names}" if names else reason)
    return version


def label(write: Write, version: int, tags: tuple[str, ...] | None, description: str | None) -> int:
    """Give a ready version other tags or another description; None leaves them.

    Raises:
        AdapterNotFoundError: If there is no such adapter or version.
        AdapterNotReadyError: If the version is not ready.
    """
    target = check_ready(find_version(write.adapter, version))
    new: dict[str, object] = {}
    if tags is not None and tags != target.tags:
        new["tags"] = list(tags)
    if description is not None and description != target.description:
        new["description"] = description
    if new:
        write.update(version, **new)
        write.log("label", version, target.digest, detail=", ".join(sorted(new)))
    return version


def _point(write: Write, alias: str, version: int) -> None:
    before = write.adapter.aliases.get(alias)
    if before is None:
        row = {"name": write.name, "alias": alias, "version": version, "earlier": []}
        write.connection.execute(sa.insert(ALIASES).values(row))
    elif before != version:
        _move(write, alias, version, [*_earlier(write, alias), before][-_MAX_NUM_EARLIER:])


def _earlier(write: Write, alias: str) -> list[int]:
    return list(
        write.connection.execute(sa.select(ALIASES.c.earlier).where(*_is_alias(write.name, alias))).scalar_one()
    )


def _move(write: Write, alias: str, version: int, earlier: list[int]) -> None:
    values = {"version": version, "earlier": earlier}
    write.connection.execute(sa.update(ALIASES).where(*_is_alias(write.name, alias)).values(values))


def _filled(done: Completion) -> dict[str, object]:
    manifest = done.manifest
    return {
        "digest": done.digest,
        "kind": manifest.kind,
        "state": VersionState.READY,
        "reason": "",
        "rank": manifest.rank,
        "num_virtual_tokens": manifest.num_virtual_tokens,
        "size_bytes": done.size_bytes,
        "task": manifest.task,
        "licence": manifest.licence,
        "description": manifest.description,
        "scores": dict(manifest.scores),
        "prompt_template": manifest.prompt_template,
        "tags": list(done.tags),
        "metrics": list(manifest.metrics),
    }


def _is(table: sa.Table, name: str, version: int) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.name == name, table.c.version == version


def _is_alias(name: str, alias: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return ALIASES.c.name == name, ALIASES.c.alias == alias


def _check_begun(write: Write, instance: str, version: int) -> None:
    ours = upload_is(write.name, version, instance)
    if write.connection.execute(sa.select(UPLOADS.c.name).where(*ours)).first() is None:
        raise AdapterNotReadyError(
            f"the upload of {write.name}:{version} took too long and was removed; upload it again"
        )
