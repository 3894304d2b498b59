"""Reference sets: texts that wait for requests by the hash of their input, put there whole and kept until removed.

A set is its tenant's: it is for requests of adapters that its owner sees, and only who sees the same names may replace
it. Any thread may call any method, all of them wait for the database.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from adapters.database import as_store_error
from server.core.errors import NotFoundError, PermissionDeniedError
from server.core.principal import Principal
from server.evaluation.records import Record
from server.evaluation.schema import SET_REFERENCES, SETS
from server.evaluation.store import EvaluationStore
from server.observability.adapter_labels import BASE

_MAX_NUM_ROWS = 500


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """A set, without its texts.

    Attributes:
        name: Its name.
        num_references: Inputs it has references for.
        updated_s: When it was put there, in Unix time.
    """

    name: str
    num_references: int
    updated_s: float


class ReferenceSets:
    """The sets of a database.

    Args:
        store: Whose database.
        clock: Returns Unix time.
    """

    def __init__(self, store: EvaluationStore, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the database."""
        self._reader, self._writer = store.reader, store.writer
        self._clock = clock

    def put(self, principal: Principal, name: str, references: Mapping[str, Sequence[str]]) -> ReferenceSet:
        """Put a set there, in place of an earlier one of its name.

        Args:
            principal: Whose it is.
            name: Its name.
            references: SHA-256 of an input, hexadecimal → its references.

        Raises:
            PermissionDeniedError: If a set of this name is somebody else's.
            StoreError: If the database cannot be written.
        """
        made = ReferenceSet(name, len(references), self._clock())
        row = {
            "name": name,
            "patterns": sorted(principal.patterns),
            "who": principal.who,
            "num_references": made.num_references,
            "updated_s": made.updated_s,
        }
        rows = [
            {"set_name": name, "input_sha256": digest, "reference_texts": list(texts)}
            for digest, texts in references.items()
        ]
        with as_store_error(), self._writer.begin() as connection:
            found = connection.execute(sa.select(SETS.c.patterns).where(SETS.c.name == name).with_for_update()).scalar()
            if found is not None and not _is_own(principal, found):
                raise PermissionDeniedError("a reference set of this name is somebody else's")
            _remove(connection, name)
            connection.execute(sa.insert(SETS).values(row))
            for start in range(0, len(rows), _MAX_NUM_ROWS):
                connection.execute(sa.insert(SET_REFERENCES), rows[start : start + _MAX_NUM_ROWS])
        return made

    def owned(self, principal: Principal) -> tuple[ReferenceSet, ...]:
        """Return the caller's sets, by name.

        Raises:
            StoreError: If the database cannot be read.
        """
        with as_store_error(), self._reader.begin() as connection:
            rows = connection.execute(sa.select(SETS).order_by(SETS.c.name)).mappings().all()
        return tuple(
            ReferenceSet(row["name"], row["num_references"], row["updated_s"])
            for row in rows
            if _is_own(principal, row["patterns"])
        )

    def remove(self, principal: Principal, name: str) -> None:
        """Remove a set; scores made by it stay.

        Raises:
            NotFoundError: If there is none of this name, or it is somebody else's.
            StoreError: If the database cannot be written.
        """
        with as_store_error(), self._writer.begin() as connection:
            found = connection.execute(sa.select(SETS.c.patterns).where(SETS.c.name == name)).scalar()
            if found is None or not _is_own(principal, found):
                raise NotFoundError("there is no such reference set")
            _remove(connection, name)

    def matching(self, records: Sequence[Record]) -> list[tuple[Record, tuple[str, ...]]]:
        """Return the requests that sets have references for, with those; several sets' references are put together.

        Raises:
            StoreError: If the database cannot be read.
        """
        hashes = sorted({record.outcome.input_sha256 for record in records})
        if not hashes:
            return []
        query = (
            sa.select(SET_REFERENCES.c.input_sha256, SET_REFERENCES.c.reference_texts, SETS.c.patterns)
            .join(SETS, SETS.c.name == SET_REFERENCES.c.set_name)
            .where(SET_REFERENCES.c.input_sha256.in_(hashes))
            .order_by(SET_REFERENCES.c.set_name)
        )
        with as_store_error(), self._reader.begin() as connection:
            rows = connection.execute(query).all()
        found = []
        for record in records:
            texts: dict[str, None] = {}
            for digest, references, patterns in rows:
                if digest == record.outcome.input_sha256 and _is_for(record.outcome.adapters, patterns):
                    texts |= dict.fromkeys(references)
            if texts:
                found.append((record, tuple(texts)))
        return found


def _remove(connection: sa.Connection, name: str) -> None:
    connection.execute(sa.delete(SET_REFERENCES).where(SET_REFERENCES.c.set_name == name))
    connection.execute(sa.delete(SETS).where(SETS.c.name == name))


def _is_own(principal: Principal, patterns: Sequence[str]) -> bool:
    return principal.sees_all or sorted(principal.patterns) == sorted(patterns)


def _is_for(adapters: str, patterns: Sequence[str]) -> bool:
    """Return whether a set with these patterns may say how good these adapters are; the base's are for all to see."""
    owner = Principal("", frozenset(), tuple(patterns))
    if adapters == BASE:
        return owner.sees_all
    return all(owner.sees(part.partition(":")[0]) for part in adapters.split("+"))
