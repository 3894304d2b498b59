"""Databases for the registry's tests, and a registry on each kind of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from adapters.registry import Registry
from tests.fixtures.postgres import database_url, postgres_server, postgres_url
from tests.fixtures.registry import Clock

__all__ = ["database_url", "postgres_server", "postgres_url"]

Opener = Callable[..., Registry]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_registry(database_url: str, clock: Clock) -> Iterator[Opener]:
    """Opens the test's database as one more server; the word for the server is its only argument."""
    with ExitStack() as stack:
        yield lambda instance="": stack.enter_context(closing(Registry(database_url, instance=instance, clock=clock)))


@pytest.fixture
def registry(open_registry: Opener) -> Registry:
    return open_registry("mine")
