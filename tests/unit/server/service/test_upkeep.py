"""What a server does beside answering: look at registry and keys, tell its leases, sweep, and outlive outages."""

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from adapters.errors import StoreError
from server.service.upkeep import Upkeep


class Places:
    """Registry, keys, store and directory in one; counts what it is asked and fails as it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.published: frozenset[str] = frozenset()
        self.failing: dict[str, Exception] = {}

    def do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.failing:
            raise self.failing[what]

    def refresh(self) -> None:
        self.do("refresh")

    def publish_leases(self, digests: frozenset[str], *, ttl_s: float) -> None:
        assert ttl_s > 10
        self.published = digests
        self.do("publish")

    def live_digests(self) -> frozenset[str]:
        return frozenset({"live"})

    def sweep(self, live: Callable[[], frozenset[str]], *, older_than_s: float) -> tuple[str, ...]:
        assert (live(), older_than_s) == (frozenset({"live"}), 7.0)
        self.do("sweep")
        return ()

    def leased(self) -> frozenset[str]:
        return frozenset({"leased"})


def upkeep_of(places: Places, sweep_every_s: float = 60.0) -> Upkeep:
    parts = (places, places, places, places)
    return Upkeep(*parts, poll_s=0.01, sweep_every_s=sweep_every_s, sweep_grace_s=7.0)  # type: ignore[arg-type]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - threads, without an event
            await asyncio.sleep(0.005)


async def test_upkeep_looks_tells_and_sweeps_again_and_again() -> None:
    places = Places()
    upkeep = upkeep_of(places, sweep_every_s=0.01)
    upkeep.start()
    await until(lambda: min(map(places.calls.count, ("refresh", "publish", "sweep"))) >= 3)
    await upkeep.stop()
    assert places.published == {"leased"}
    num_calls = len(places.calls)
    await asyncio.sleep(0.05)
    assert len(places.calls) == num_calls


@pytest.mark.parametrize("error", [StoreError("the database cannot be used"), RuntimeError("a mistake")])
async def test_upkeep_says_an_outage_once_and_goes_on(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    caplog.set_level(logging.INFO)
    places = Places()
    places.failing = {"publish": error}
    upkeep = upkeep_of(places)
    upkeep.start()
    await until(lambda: places.calls.count("publish") >= 5)
    assert places.calls.count("refresh") >= 5
    places.failing.clear()
    num_calls = len(places.calls)
    await until(lambda: len(places.calls) > num_calls + 5)
    await upkeep.stop()
    said = [entry.message for entry in caplog.records if "publishing leases" in entry.message]
    assert [message.rpartition(" leases ")[2][:5] for message in said] == ["fails", "works"]


async def test_upkeep_sweeps_while_the_database_hangs() -> None:
    places, gate = Places(), threading.Event()
    places.refresh = gate.wait  # type: ignore[assignment,method-assign]
    upkeep = upkeep_of(places, sweep_every_s=0.01)
    upkeep.start()
    await until(lambda: places.calls.count("sweep") >= 3)
    gate.set()
    await upkeep.stop()


async def test_upkeep_that_never_started_stops() -> None:
    places = Places()
    await upkeep_of(places).stop()
    assert places.calls == []
