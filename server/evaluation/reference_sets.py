"""Reference sets: texts that wait for requests by the hash of their input, put there whole and kept until removed.

A set is its tenant's, which is all keys that see the same names: it is for requests of adapters that these see, and
for others it does not exist. Any thread may call any method, all of them wait for the database.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from adapters.database import as_store_error
from server.core.errors import NotFoundError
from server.core.principal import Principal
from server.evaluation.records import Record, hash_text
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
            StoreError: If the database cannot be written.
        """
        made, owner = ReferenceSet(name, len(references), self._clock()), _owner(principal)
        row = {
            "owner": owner,
            "name": name,
            "patterns": sorted(principal.patterns),
            "who": principal.who,
            "num_references": made.num_references,
            "updated_s": made.updated_s,
        }
        rows = [
            {"owner": owner, "set_name": name, "input_sha256": digest, "reference_texts": list(texts)}
            for digest, texts in references.items()
        ]
        with as_store_error(), self._writer.begin() as connection:
            _remove(connection, owner, name)
            connection.execute(sa.insert(SETS).values(row))
            for start in range(0, len(rows), _MAX_NUM_ROWS):
                connection.execute(sa.insert(SET_REFERENCES), rows[start : start + _MAX_NUM_ROWS])
        return made

    def owned(self, principal: Principal) -> tuple[ReferenceSet, ...]:
        """Return the caller's sets, by name.

        Raises:
            StoreError: If the database cannot be read.
        """
        query = sa.select(SETS.c.name, SETS.c.num_references, SETS.c.updated_s)
        query = query.where(SETS.c.owner == _owner(principal)).order_by(SETS.c.name)
        with as_store_error(), self._reader.begin() as connection:
            return tuple(ReferenceSet(*row) for row in connection.execute(query))

    def remove(self, principal: Principal, name: str) -> None:
        """Remove a set; scores made by it stay.

        Raises:
            NotFoundError: If the caller has none of this name.
            StoreError: If the database cannot be written.
        """
        with as_store_error(), self._writer.begin() as connection:
            if not _remove(connection, _owner(principal), name):
                raise NotFoundError("there is no such reference set")

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
            .join(SETS, (SETS.c.owner == SET_REFERENCES.c.owner) & (SETS.c.name == SET_REFERENCES.c.set_name))
            .where(SET_REFERENCES.c.input_sha256.in_(hashes))
            .order_by(SET_REFERENCES.c.owner, SET_REFERENCES.c.set_name)
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


def _remove(connection: sa.Connection, owner: str, name: str) -> bool:
    mine = (SET_REFERENCES.c.owner == owner) & (SET_REFERENCES.c.set_name == name)
    connection.execute(sa.delete(SET_REFERENCES).where(mine))
    return bool(connection.execute(sa.delete(SETS).where(SETS.c.owner == owner, SETS.c.name == name)).rowcount)


def _owner(principal: Principal) -> str:
    """Return a word for the caller's tenant, of one length however many patterns it has."""
    return hash_text("\n".join(sorted(principal.patterns)))


def _is_for(adapters: str, patterns: Sequence[str]) -> bool:
    """Return whether a set with these patterns may say how good these adapters are; the base's are for all to see."""
    owner = Principal("", frozenset(), tuple(patterns))
    if adapters == BASE:
        return owner.sees_all
    return all(owner.sees(part.partition(":")[0]) for part in adapters.split("+"))
