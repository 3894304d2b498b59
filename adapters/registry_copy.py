"""One server's copy of the registry in memory, kept in step with the database: by our own changes and by looking.

Knows no rules of changes; it is handed the work. Any thread; everything but :attr:`RegistryCopy.snapshot` waits for the
database.
"""

import threading
from collections.abc import Callable

import sqlalchemy as sa

from adapters import registry_writes
from adapters.database import as_store_error
from adapters.registry_idempotency import fingerprint_of, keep, recall
from adapters.registry_records import AdapterRecord, Change, check_key
from adapters.registry_rows import EVERYTHING, is_upload_expired, read_adapter, read_changes
from adapters.registry_schema import UPLOADS
from adapters.registry_snapshot import Snapshot
from adapters.registry_writes import Write


class RegistryCopy:
    """The copy; empty until the first look or change.

    Args:
        reader: Engine to read with.
        writer: Engine to write with.
        instance: This server.
        clock: Returns Unix time.
    """

    def __init__(self, reader: sa.Engine, writer: sa.Engine, *, instance: str, clock: Callable[[], float]) -> None:
        """Know nothing yet."""
        self._reader = reader
        self._writer = writer
        self._instance = instance
        self._clock = clock
        self._writing = threading.Lock()
        self._looking = threading.Lock()
        self._snapshot = Snapshot(EVERYTHING)

    @property
    def snapshot(self) -> Snapshot:
        """What is known now."""
        return self._snapshot

    def refresh(self) -> None:
        """Look what other servers changed, and remove uploads that did not end in time.

        Raises:
            StoreError: If the database cannot be used; what is known stays.
        """
        if self._look():
            self.remove_uploads(UPLOADS.c.expires_s < self._clock())

    def change(
        self,
        name: str,
        change: Change,
        asked: tuple[object, ...],
        work: Callable[[Write], int],
        *,
        upload: int | None = None,
    ) -> tuple[AdapterRecord, int]:
        """Do ``work`` in one transaction and return the adapter as it is then and the version it was about.

        Args:
            name: Adapter it is about.
            change: By whom; under a key that was used for the same, only the first answer is given.
            asked: What the work is, for the key; values JSON can hold.
            work: Changes rows and leaves at least one version.
            upload: Version begun here that is removed where the first answer is given again.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            IdempotencyConflictError: If the key was used for another change.
            StoreError: If the database cannot be used.
            AdapterError: Whatever the work raises; nothing is changed then.
        """
        key, fingerprint = check_key(change.idempotency_key), fingerprint_of(name, *asked)
        with self._writing:  # so that our changes come into the snapshot in the order they were made
            with as_store_error(), self._writer.begin() as connection:
                counter, now_s = registry_writes.lock(connection) + 1, self._clock()
                before = read_adapter(connection, name)
                answer = recall(connection, change, fingerprint, now_s) if key else None
                if answer is None:
                    version = work(Write(connection, name, before, change, now_s))
                elif upload is not None:
                    registry_writes.remove_uploads(connection, *registry_writes.upload_is(name, upload, self._instance))
                after = read_adapter(connection, name)
                assert after is not None, "a change leaves the adapter it was about"
                if answer is None:
                    answer = after, version
                    if key:
                        keep(connection, change, fingerprint, answer, now_s)
                if after != before:
                    registry_writes.bump(connection, counter, [name])
            if after != before:
                self._publish(counter, after)
        return answer

    def remove_uploads(self, *which: sa.ColumnElement[bool]) -> None:
        """Remove the versions of some uploads, and look at the database.

        Raises:
            StoreError: If the database cannot be used.
        """
        with self._writing, as_store_error(), self._writer.begin() as connection:
            counter = registry_writes.lock(connection) + 1
            if names := registry_writes.remove_uploads(connection, *which):
                registry_writes.bump(connection, counter, names)
        self._look()

    def _publish(self, counter: int, record: AdapterRecord) -> None:
        """Bring our own change into the snapshot, unless a look at the database has."""
        with self._looking:
            snapshot = self._snapshot
            if snapshot.counter < counter:
                # With changes of others in between, the next look must find those; it may find ours again.
                known = counter if snapshot.counter == counter - 1 else snapshot.counter
                self._snapshot = snapshot.changed(known, [record], ())

    def _look(self) -> bool:
        """Bring what changed in the database into the snapshot; return whether an upload is overdue."""
        with self._looking, as_store_error():
            snapshot = self._snapshot
            with self._reader.begin() as connection:
                changes = read_changes(connection, snapshot.counter)
                is_overdue = is_upload_expired(connection, self._clock())
            if changes is not None:
                gone = () if changes.names is None else snapshot.names() - changes.names
                self._snapshot = snapshot.changed(changes.counter, changes.records.values(), gone)
        return is_overdue
