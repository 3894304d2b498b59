"""A store on each kind of database, opened again and again as several servers would, and a clock that stands."""

from collections.abc import Callable, Iterator

import pytest

from server.evaluation.store import EvaluationStore
from tests.fixtures.postgres import database_url, postgres_server, postgres_url
from tests.fixtures.registry import Clock

__all__ = ["database_url", "postgres_server", "postgres_url"]
OpenStore = Callable[..., EvaluationStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(database_url: str, clock: Clock) -> Iterator[OpenStore]:
    stores: list[EvaluationStore] = []

    def open_one(*, store_texts: bool = False) -> EvaluationStore:
        stores.append(EvaluationStore(database_url, store_texts=store_texts, clock=clock))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> EvaluationStore:
    return open_store()
