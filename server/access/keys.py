"""API keys in the registry's database: made and revoked with an audit row, checked from memory.

Of a secret only its SHA-256 is kept, and nothing here puts a token or a hash into a message or a log. Knows no protocol
and no adapters. Methods may be called from any thread; those that do not say "from memory" wait for the database.
"""

import hmac
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa

from adapters import audit, registry_schema
from adapters.database import as_store_error, migrate, open_database
from adapters.registry_records import Change
from server.access.api_key import ApiKey, check_key, hash_secret, new_key_id, new_secret, split_token, token_of
from server.access.schema import API_KEYS, COUNTER, SCRIPTS, VERSION_TABLE
from server.core.errors import NotFoundError, UnauthenticatedError
from server.core.principal import EVERY_NAME, Scope

__all__ = ["ApiKey", "KeyRing"]

# What a secret is compared with when its key does not exist, so that the answer takes as long.
_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class _Kept:
    key: ApiKey
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All keys at one value of the change counter, by id in the order they were made."""

    counter: int
    keys: Mapping[str, _Kept]


class KeyRing:
    """All keys of a database.

    Args:
        url: The registry's database URL; the tables are made and migrated as needed, the registry's too.
        clock: Returns Unix time.

    Raises:
        StoreError: If the database cannot be used.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database, bring its schema up to date and read the keys."""
        self._clock = clock
        self._lock = threading.Lock()
        self._snapshot = _Snapshot(-1, {})
        self._reader, self._writer = open_database(url, SCRIPTS, VERSION_TABLE)
        try:
            # The audit log lies among the registry's tables, and keys are often made before the server's first start.
            with as_store_error():
                migrate(self._writer, registry_schema.SCRIPTS, registry_schema.VERSION_TABLE)
            self.refresh()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database's connections; no other method may be called after."""
        self._reader.dispose()

    def create(
        self,
        name: str,
        *,
        scopes: Collection[Scope],
        patterns: Collection[str] = EVERY_NAME,
        max_requests_per_minute: int = 0,
        max_concurrent: int = 0,
        first_priority: int = 0,
        expires_s: float | None = None,
        change: Change,
    ) -> tuple[str, ApiKey]:
        """Make a key and return its token, which nobody can read again, and the key.

        Args:
            name: Whom or what it is for.
            scopes: What it may do.
            patterns: Shell patterns of the adapter names that exist for it.
            max_requests_per_minute: Of inference and uploads; 0 for any number.
            max_concurrent: Most of them at once; 0 for any number.
            first_priority: The earliest class its requests may have.
            expires_s: Unix time from which it is refused, or None.
            change: By whom it is made; its idempotency key does not count.

        Raises:
            InvalidArgumentError: If an argument is out of range.
            StoreError: If the database cannot be written.
        """
        key = check_key(
            ApiKey(
                key_id=new_key_id(),
                name=name,
                scopes=frozenset(scopes),
                patterns=tuple(patterns),
                max_requests_per_minute=max_requests_per_minute,
                max_concurrent=max_concurrent,
                first_priority=first_priority,
                created_s=self._clock(),
                expires_s=expires_s,
            )
        )
        secret = new_secret()
        row = asdict(key) | {
            "scopes": sorted(key.scopes),
            "patterns": list(key.patterns),
            "secret_sha256": hash_secret(secret).hex(),
        }
        with self._lock, as_store_error():
            with self._writer.begin() as connection:
                _count_change(connection)
                connection.execute(sa.insert(API_KEYS).values(row))
                _log(connection, "create_key", key, change, key.created_s)
                snapshot = _read(connection)
            self._snapshot = snapshot
        return token_of(key.key_id, secret), key

    def revoke(self, key_id: str, change: Change) -> ApiKey:
        """Refuse a key from now on and return it; one that is revoked already stays as it is.

        Raises:
            NotFoundError: If there is no such key.
            StoreError: If the database cannot be written.
        """
        with self._lock, as_store_error():
            with self._writer.begin() as connection:
                _count_change(connection)
                snapshot = _read(connection)
                kept = snapshot.keys.get(key_id)
                if kept is None:
                    raise NotFoundError("there is no such key")
                if kept.key.revoked_s is None:
                    key = replace(kept.key, revoked_s=self._clock())
                    mine = API_KEYS.c.key_id == key_id
                    connection.execute(sa.update(API_KEYS).where(mine).values(revoked_s=key.revoked_s))
                    _log(connection, "revoke_key", key, change, key.revoked_s or 0.0)
                    snapshot = _read(connection)
            self._snapshot = snapshot
        return snapshot.keys[key_id].key

    def list(self) -> tuple[ApiKey, ...]:
        """Return all keys, oldest first, revoked and expired ones included. From memory."""
        return tuple(kept.key for kept in self._snapshot.keys.values())

    def find(self, key_id: str) -> ApiKey | None:
        """Return a key by its id. From memory."""
        kept = self._snapshot.keys.get(key_id)
        return None if kept is None else kept.key

    @property
    def any_keys(self) -> bool:
        """Whether a key was ever made. Revoked ones count: revoking the last one must not open the server."""
        return bool(self._snapshot.keys)

    def refresh(self) -> None:
        """Look what other processes changed; nothing is read where nothing did.

        Raises:
            StoreError: If the database cannot be read; what is known stays.
        """
        with self._lock, as_store_error(), self._reader.begin() as connection:
            if _counter(connection) != self._snapshot.counter:
                self._snapshot = _read(connection)

    def authenticate(self, token: str) -> ApiKey:
        """Return the key a token belongs to. From memory; a few microseconds.

        Raises:
            UnauthenticatedError: If it belongs to none, or to one that is revoked or has expired.
        """
        key_id, secret = split_token(token)
        kept = self._snapshot.keys.get(key_id)
        is_right = hmac.compare_digest(hash_secret(secret), _NO_HASH if kept is None else kept.secret_hash)
        if kept is None or not is_right:
            raise UnauthenticatedError("the API key is not valid")
        key = kept.key
        if key.revoked_s is not None:
            raise UnauthenticatedError("the API key is revoked")
        if key.expires_s is not None and key.expires_s <= self._clock():
            raise UnauthenticatedError("the API key has expired")
        return key


def _counter(connection: sa.Connection) -> int:
    counter: int = connection.execute(sa.select(COUNTER.c.counter)).scalar_one()
    return counter


def _count_change(connection: sa.Connection) -> None:
    """Raise the change counter, which keeps other changes out until the transaction ends."""
    connection.execute(sa.update(COUNTER).values(counter=COUNTER.c.counter + 1))


def _read(connection: sa.Connection) -> _Snapshot:
    # The counter first: a key made in between is then read again, and never missed.
    counter = _counter(connection)
    rows = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.created_s, API_KEYS.c.key_id)).mappings()
    return _Snapshot(counter, {row["key_id"]: _kept(row) for row in rows})


def _kept(row: sa.RowMapping) -> _Kept:
    fields = dict(row)
    secret_hash = bytes.fromhex(fields.pop("secret_sha256"))
    fields["scopes"] = frozenset(Scope(scope) for scope in fields["scopes"])
    fields["patterns"] = tuple(fields["patterns"])
    return _Kept(ApiKey(**fields), secret_hash)


def _log(connection: sa.Connection, action: str, key: ApiKey, change: Change, time_s: float) -> None:
    scopes, patterns = " ".join(sorted(key.scopes)), " ".join(key.patterns)
    detail = f"key {key.key_id} ({key.name}) for {scopes} on {patterns}"
    audit.write(connection, audit.AuditRecord(time_s, change.who, change.origin, action, detail=detail))
