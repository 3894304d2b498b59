"""A store of rollouts on each kind of database, and a clock that stands until it is moved."""

from collections.abc import Callable, Iterator

import pytest

from server.evaluation.rollouts.store import RolloutStore
from tests.fixtures.postgres import database_url, postgres_server, postgres_url
from tests.fixtures.registry import Clock

__all__ = ["database_url", "postgres_server", "postgres_url"]
OpenStore = Callable[[], RolloutStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(database_url: str, clock: Clock) -> Iterator[OpenStore]:
    """Opens the test's database again and again, as several servers would."""
    stores: list[RolloutStore] = []

    def open_one() -> RolloutStore:
        stores.append(RolloutStore(database_url, clock=clock))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> RolloutStore:
    return open_store()
