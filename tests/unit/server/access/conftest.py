"""A ring of keys on each kind of database, and a clock that stands until it is moved."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.access.keys import KeyRing
from tests.fixtures.postgres import database_url, postgres_server, postgres_url
from tests.fixtures.registry import Clock

__all__ = ["database_url", "postgres_server", "postgres_url"]
OpenRing = Callable[[], KeyRing]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ring(database_url: str, clock: Clock) -> Iterator[OpenRing]:
    """Opens the test's database again and again, as several processes would."""
    rings: list[KeyRing] = []

    def open_one() -> KeyRing:
        rings.append(KeyRing(database_url, clock=clock))
        return rings[-1]

    yield open_one
    for ring in rings:
        ring.close()


@pytest.fixture
def ring(open_ring: OpenRing) -> KeyRing:
    return open_ring()


@pytest.fixture
def local_ring(tmp_path: Path, clock: Clock) -> Iterator[KeyRing]:
    """For what does not depend on the kind of database."""
    ring = KeyRing(f"sqlite:///{tmp_path / 'local.db'}", clock=clock)
    yield ring
    ring.close()
