"""The same change under the same key, made once: its answer is kept beside it, in the same transaction, for 24 hours.

Knows no rules of changes. The functions may be called from any thread, with a connection of that thread.
"""

import hashlib
import json
import zlib
from dataclasses import asdict

import sqlalchemy as sa

from adapters.errors import IdempotencyConflictError
from adapters.registry_records import AdapterRecord, Change
from adapters.registry_rows import version_of
from adapters.registry_schema import IDEMPOTENCY

KEPT_S = 24 * 3600.0


def fingerprint_of(*parts: object) -> str:
    """Return what tells one change from another: its action and all that it was asked to do, as JSON can hold it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def recall(
    connection: sa.Connection, change: Change, fingerprint: str, now_s: float
) -> tuple[AdapterRecord, int] | None:
    """Return the answer the change was given when it was made, or None if it was not, or long ago.

    Raises:
        IdempotencyConflictError: If the key was used for another change.
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be read.
    """
    mine = (IDEMPOTENCY.c.who == change.who, IDEMPOTENCY.c.key == change.idempotency_key)
    query = sa.select(IDEMPOTENCY.c.fingerprint, IDEMPOTENCY.c.answer).where(*mine, IDEMPOTENCY.c.expires_s >= now_s)
    found = connection.execute(query).first()
    if found is None:
        return None
    if found.fingerprint != fingerprint:
        raise IdempotencyConflictError("this idempotency key was used for another change; take a new one")
    answer = json.loads(zlib.decompress(found.answer))
    versions = tuple(version_of(version) for version in answer["versions"])
    return AdapterRecord(answer["name"], versions, answer["aliases"]), answer["version"]


def keep(
    connection: sa.Connection, change: Change, fingerprint: str, answer: tuple[AdapterRecord, int], now_s: float
) -> None:
    """Keep the answer of a change, and forget answers that are too old.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be written.
    """
    record, version = answer
    text = json.dumps({**asdict(record), "version": version})
    connection.execute(sa.delete(IDEMPOTENCY).where(IDEMPOTENCY.c.expires_s < now_s))
    row = {
        "who": change.who,
        "key": change.idempotency_key,
        "fingerprint": fingerprint,
        "answer": zlib.compress(text.encode()),
        "expires_s": now_s + KEPT_S,
    }
    connection.execute(sa.insert(IDEMPOTENCY).values(row))
