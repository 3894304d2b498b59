"""Names → versions → digests, with aliases, shared by all servers that open one database: SQLite or PostgreSQL by URL.

A version never changes once it is ready. Every change is one transaction together with its audit row and, under an
idempotency key, its answer, so a crash loses nothing that was answered and leaves nothing half done. Changes of all
servers are made one after the other. Knows no bytes (``adapters.store`` does).

Reads are answered from memory and wait for nothing: our own changes are in it at once, those of other servers after
:meth:`Registry.refresh`, and they go on when the database does not. Methods may be called from any thread; all but the
reads from memory wait for the database.
"""

import time
import uuid
from collections.abc import Callable
from functools import partial

from adapters import audit, registry_writes
from adapters.audit import AuditRecord
from adapters.database import as_store_error, open_database
from adapters.digest import is_digest
from adapters.errors import InvalidAdapterReferenceError
from adapters.manifest import MAX_DESCRIPTION_CHARS, AdapterManifest, check_name, check_shown
from adapters.prompting import check_template
from adapters.registry_copy import RegistryCopy
from adapters.registry_leases import Leases
from adapters.registry_records import (
    DEFAULT_ALIAS,
    AdapterRecord,
    AdapterReference,
    Change,
    VersionRecord,
    VersionState,
    check_tags,
    check_text,
    find_version,
    parse_reference,
)
from adapters.registry_rows import read_live_digests
from adapters.registry_schema import SCRIPTS, UPLOADS, VERSION_TABLE
from adapters.registry_writes import Completion

__all__ = [
    "DEFAULT_ALIAS",
    "AdapterRecord",
    "AdapterReference",
    "AuditRecord",
    "Change",
    "Registry",
    "VersionRecord",
    "VersionState",
    "parse_reference",
]

_MAX_NUM_AUDIT = 1000


def _every_name(_name: str) -> bool:
    return True


class Registry:
    """The registry.

    Args:
        url: Database URL, ``sqlite:////path/registry.db`` or ``postgresql://user@host/name``; made and migrated as
            needed.
        instance: Word for this server that stays the same when it starts again, at most 64 characters; what an earlier
            life of it began to upload is removed now. Empty for one that has no later life.
        clock: Returns Unix time.

    Raises:
        StoreError: If the database cannot be opened.
    """

    def __init__(self, url: str, *, instance: str = "", clock: Callable[[], float] = time.time) -> None:
        """Open the database, bring its schema up to date and read it."""
        self._instance = instance or uuid.uuid4().hex
        self._begun: set[tuple[str, int]] = set()
        self._reader, writer = open_database(url, SCRIPTS, VERSION_TABLE)
        self._leases = Leases(self._reader, writer, instance=self._instance, clock=clock)
        self._copy = RegistryCopy(self._reader, writer, instance=self._instance, clock=clock)
        try:
            self._copy.remove_uploads(UPLOADS.c.instance == self._instance)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database's connections; no other method may be called after."""
        self._reader.dispose()

    def refresh(self) -> None:
        """Look what other servers changed, and remove uploads that did not end in time.

        Raises:
            StoreError: If the database cannot be used; what is known stays.
        """
        self._copy.refresh()

    @property
    def generation(self) -> int:
        """A number that changes whenever what the reads answer may have."""
        return self._copy.snapshot.generation

    def resolve(self, reference: str) -> VersionRecord:
        """Return the version a reference means now; a bare name means ``@stable``, else the newest ready version.

        Raises:
            InvalidAdapterReferenceError: If the reference is not well formed.
            AdapterNotFoundError: If there is no such name, version or alias.
            AdapterNotReadyError: If the version is known but not ready, or none is.
        """
        return self._copy.snapshot.resolve(reference)

    def get(self, name: str) -> AdapterRecord:
        """Return one adapter.

        Raises:
            AdapterNotFoundError: If there is none of this name.
        """
        return self._copy.snapshot.get(name)

    def list(self) -> tuple[AdapterRecord, ...]:
        """Return all adapters by name."""
        return self._copy.snapshot.list()

    def begin_version(self, name: str, change: Change, *, lease_s: float) -> VersionRecord:
        """Make a version in the state ``uploading`` and return it; it must be completed or abandoned.

        Args:
            name: Adapter name; may be new.
            change: By whom; its idempotency key counts when the version is completed.
            lease_s: Seconds after which any server may take the upload for dead and remove it.

        Raises:
            InvalidAdapterReferenceError: If the name is not well formed.
            StoreError: If the database cannot be written.
        """
        check_name(name)

        # One of ours that ran out of time and was removed must not end in another's place.
        taken = max((number for begun, number in tuple(self._begun) if begun == name), default=0)
        work = partial(registry_writes.begin, instance=self._instance, taken=taken, lease_s=lease_s)
        record, version = self._copy.change(name, Change(change.who, change.origin), (), work)
        self._begun.add((name, version))
        return find_version(record, version)

    def mark_validating(self, name: str, version: int) -> None:
        """Say that all bytes of an upload have arrived.

        Raises:
            AdapterNotReadyError: If it took too long and was removed.
            StoreError: If the database cannot be written.
        """
        work = partial(registry_writes.mark_validating, instance=self._instance, version=version)
        self._copy.change(name, Change(""), (), work)

    def complete_version(
        self,
        name: str,
        version: int,
        *,
        digest: str,
        manifest: AdapterManifest,
        size_bytes: int,
        alias: str | None,
        tags: tuple[str, ...],
        change: Change,
    ) -> VersionRecord:
        """Make an upload ready and return it; bytes a live version of the name has give that version, with more tags.

        Args:
            name: Adapter name.
            version: As begun.
            digest: Content address of its files, already in the store.
            manifest: What it is; its own name does not count.
            size_bytes: Of all files.
            alias: Alias to point at the version in the same transaction, or None.
            tags: Words to find it by.
            change: By whom.

        Raises:
            InvalidAdapterReferenceError: If alias, digest, a tag or the key is not well formed.
            InvalidAdapterError: If a text of the manifest cannot be kept.
            PromptTemplateError: If the manifest's template is not sound.
            AdapterNotReadyError: If it took too long and was removed.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        if alias is not None:
            check_name(alias)
        if not is_digest(digest):
            raise InvalidAdapterReferenceError("a digest has 64 lower-case hex characters")
        if manifest.prompt_template:
            check_template(manifest.prompt_template)
        for what in ("task", "licence", "description", "prompt_template"):
            check_text(getattr(manifest, what), what.replace("_", " "))
        done = Completion(digest, manifest, size_bytes, alias, check_tags(tags))
        work = partial(registry_writes.complete, instance=self._instance, version=version, done=done)
        asked = ("upload", digest, alias, done.tags)
        found = find_version(*self._copy.change(name, change, asked, work, upload=version))
        self._begun.discard((name, version))
        return found

    def abandon_version(self, name: str, version: int) -> None:
        """Remove an upload of this server that ends without success; harmless if it is gone.

        Raises:
            StoreError: If the database cannot be written.
        """
        self._copy.remove_uploads(*registry_writes.upload_is(name, version, self._instance))
        self._begun.discard((name, version))

    def set_alias(
        self, name: str, alias: str, version: int, change: Change, *, expected: int | None = None
    ) -> AdapterRecord:
        """Point an alias at a ready version and return the adapter; changes nothing where it points there.

        Args:
            name: Adapter name.
            alias: The alias.
            version: Where it is to point.
            change: By whom.
            expected: Only if it points at this version now, else nothing is changed; None for wherever it points.

        Raises:
            InvalidAdapterReferenceError: If the alias or the key is not well formed.
            AdapterNotFoundError: If there is no such adapter or version.
            AdapterNotReadyError: If the version is not ready.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        work = partial(registry_writes.set_alias, alias=check_name(alias), version=version, expected=expected)
        asked = ("set_alias", alias, version) if expected is None else ("set_alias", alias, version, expected)
        return self._copy.change(name, change, asked, work)[0]

    def delete_alias(self, name: str, alias: str, change: Change) -> AdapterRecord:
        """Remove an alias with its earlier targets and return the adapter.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            AdapterNotFoundError: If there is no such adapter or alias.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        work = partial(registry_writes.delete_alias, alias=alias)
        return self._copy.change(name, change, ("delete_alias", alias), work)[0]

    def rollback(self, name: str, alias: str, change: Change) -> AdapterRecord:
        """Point an alias at its latest earlier target that is still ready, and return the adapter.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            AdapterNotFoundError: If there is no such adapter or alias.
            RollbackError: If no earlier target is ready.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        work = partial(registry_writes.rollback, alias=alias)
        return self._copy.change(name, change, ("rollback", alias), work)[0]

    def retire(self, name: str, version: int, *, reason: str, change: Change, force: bool) -> AdapterRecord:
        """Retire a ready version for ever and return the adapter; ``force`` drops the aliases that point at it.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            InvalidAdapterError: If the reason cannot be kept.
            AdapterNotFoundError: If there is no such adapter or version.
            AdapterNotReadyError: If it is still uploaded.
            AdapterInUseError: If an alias points at it, without ``force``.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        reason = check_text(reason, "reason")
        work = partial(registry_writes.retire, version=version, reason=reason, force=force)
        return self._copy.change(name, change, ("retire", version, force), work)[0]

    def label(
        self, name: str, version: int, *, tags: tuple[str, ...] | None, description: str | None, change: Change
    ) -> VersionRecord:
        """Give a ready version other tags or another description and return it; None leaves them.

        Raises:
            InvalidAdapterReferenceError: If a tag or the key is not well formed, or there are too many tags.
            InvalidAdapterError: If the description cannot be kept.
            AdapterNotFoundError: If there is no such adapter or version.
            AdapterNotReadyError: If the version is not ready.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be written.
        """
        tags = None if tags is None else check_tags(tags)
        if description is not None:
            check_text(check_shown(description, "the description", MAX_DESCRIPTION_CHARS), "description")
        work = partial(registry_writes.label, version=version, tags=tags, description=description)
        return find_version(*self._copy.change(name, change, ("label", version, tags, description), work))

    def audit(
        self, *, name: str | None = None, limit: int = 100, visible: Callable[[str], bool] = _every_name
    ) -> tuple[AuditRecord, ...]:
        """Return the newest changes from the database, newest first.

        Args:
            name: Adapter they were made to; None for all.
            limit: Most to return; never more than 1000.
            visible: Whether changes of a name may be seen; changes of no adapter have the name ``""``.

        Raises:
            StoreError: If the database cannot be read.
        """
        with as_store_error(), self._reader.begin() as connection:
            return audit.read(connection, name=name, limit=min(limit, _MAX_NUM_AUDIT), visible=visible)

    def live_digests(self) -> frozenset[str]:
        """Return the digests of all versions that are not retired, from the database.

        Raises:
            StoreError: If the database cannot be read.
        """
        with as_store_error(), self._reader.begin() as connection:
            return read_live_digests(connection)

    def publish_leases(self, words: frozenset[str], *, ttl_s: float) -> None:
        """Tell the other servers what running requests use here, for ``ttl_s``; cheap without news.

        Args:
            words: One for each thing in use, of at most 64 characters; the servers must agree on what they mean.
            ttl_s: Seconds they are believed.

        Raises:
            StoreError: If the database cannot be written.
        """
        with as_store_error():
            self._leases.publish(words, ttl_s)

    def leased_elsewhere(self, word: str) -> bool:
        """Return whether running requests of another server use what the word stands for, from the database.

        Raises:
            StoreError: If the database cannot be read.
        """
        with as_store_error():
            return self._leases.elsewhere(word)
