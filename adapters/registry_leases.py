"""What each server's running requests use, told to the other servers of one registry.

Knows no names and no bytes: things in use are words the servers agree on. Clocks of the servers may differ by less than
the leases' time to live. Any thread; every method but a :meth:`Leases.publish` without news waits for the database.
"""

import threading
from collections.abc import Callable

import sqlalchemy as sa

from adapters.registry_rows import is_leased_elsewhere
from adapters.registry_schema import LEASES

# Servers that never come back leave their rows; a day is longer than clocks are wrong.
_FORGOTTEN_AFTER_S = 24 * 3600.0


class Leases:
    """The leases of one server, and a look at those of the others.

    Args:
        reader: Engine to read with.
        writer: Engine to write with.
        instance: This server.
        clock: Returns Unix time.
    """

    def __init__(self, reader: sa.Engine, writer: sa.Engine, *, instance: str, clock: Callable[[], float]) -> None:
        """Start with nothing published."""
        self._reader = reader
        self._writer = writer
        self._instance = instance
        self._clock = clock
        self._lock = threading.Lock()
        self._published: frozenset[str] = frozenset()
        self._renew_s = float("inf")

    def publish(self, words: frozenset[str], ttl_s: float) -> None:
        """Say what is in use here for the next ``ttl_s``; does nothing where that is known for half that time.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If the database cannot be written.
        """
        with self._lock:
            now_s = self._clock()
            if words == self._published and now_s < self._renew_s:
                return
            rows = [{"instance": self._instance, "word": word, "expires_s": now_s + ttl_s} for word in sorted(words)]
            with self._writer.begin() as connection:
                gone = LEASES.c.expires_s < now_s - _FORGOTTEN_AFTER_S
                connection.execute(sa.delete(LEASES).where(gone | (LEASES.c.instance == self._instance)))
                if rows:
                    connection.execute(sa.insert(LEASES), rows)
            self._published = words
            self._renew_s = now_s + ttl_s / 2 if words else float("inf")

    def elsewhere(self, word: str) -> bool:
        """Return whether another server's requests use what the word stands for.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If the database cannot be read.
        """
        with self._reader.begin() as connection:
            return is_leased_elsewhere(connection, self._instance, word, self._clock())
