"""Who gets a place among the resident adapters."""

import asyncio

import pytest

from server.core.errors import ResourceExhaustedError, UnavailableError
from server.engine.base import ResolvedAdapter
from server.engine.vllm import residency as residency_module
from server.engine.vllm.residency import Place, Residency
from server.observability.durations import Durations
from tests.fixtures.scripted_core import lora


class Shelf:
    """Loads what it is asked for, when the test lets it."""

    def __init__(self, capacity: int) -> None:
        self.said: list[str] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.load_times = Durations()
        self.places = Residency(capacity, self._load, self._unload, self.load_times)

    async def _load(self, adapter: ResolvedAdapter) -> str:
        self.said.append(f"load {adapter.digest}")
        await self.may_load.wait()
        if adapter.digest == "broken":
            raise ValueError(adapter.digest)
        return adapter.digest.upper()

    async def _unload(self, payload: str) -> None:
        self.said.append(f"unload {payload}")

    def ask(self, digest: str) -> "asyncio.Task[Place[str]]":
        return asyncio.create_task(self.places.acquire(lora(digest)))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_acquire_cold_adapter_by_many_loads_it_once() -> None:
    shelf = Shelf(2)
    shelf.may_load.clear()
    asked = [shelf.ask("a") for _ in range(3)]
    await settle()
    assert not any(task.done() for task in asked)
    shelf.may_load.set()
    assert {place.payload for place in await asyncio.gather(*asked)} == {"A"}
    assert (shelf.said, shelf.places.num_loads, sum(shelf.load_times.counted.counts)) == (["load a"], 1, 1)


async def test_acquire_full_evicts_the_least_recently_used_that_nobody_uses() -> None:
    shelf = Shelf(3)
    a, b, c = [await shelf.ask(name) for name in "abc"]
    for place in (b, a):
        shelf.places.release(place)
    shelf.places.release(await shelf.ask("a"))
    await shelf.ask("d")
    assert shelf.said[-2:] == ["unload B", "load d"]
    assert (shelf.places.resident, shelf.places.num_evictions) == (("c", "a", "d"), 1)
    assert c.payload == "C"


async def test_acquire_all_in_use_waits_in_order_and_shares_the_place() -> None:
    shelf = Shelf(1)
    held = await shelf.ask("a")
    first, second, third = shelf.ask("b"), shelf.ask("c"), shelf.ask("b")
    await settle()
    assert not first.done()
    shelf.places.release(held)
    await asyncio.wait({first, third})
    assert not second.done()
    for task in (first, third):
        shelf.places.release(task.result())
    assert (await second).payload == "C"
    assert shelf.said == ["load a", "unload A", "load b", "unload B", "load c"]


async def test_acquire_cancelled_while_waiting_or_loading_leaves_no_hold() -> None:
    shelf = Shelf(1)
    held = await shelf.ask("a")
    waiting = shelf.ask("b")
    await settle()
    waiting.cancel()
    shelf.places.release(held)
    shelf.may_load.clear()
    loading = shelf.ask("c")
    await settle()
    loading.cancel()
    await settle()
    shelf.may_load.set()
    assert (await shelf.ask("d")).payload == "D"
    assert shelf.said == ["load a", "unload A", "load c", "unload C", "load d"]


async def test_acquire_cancelled_in_the_moment_it_is_granted_leaves_no_hold() -> None:
    shelf = Shelf(1)
    held = await shelf.ask("a")
    waiting = shelf.ask("b")
    await settle()
    shelf.places.release(held)
    waiting.cancel()
    await settle()
    assert (await asyncio.wait_for(shelf.ask("c"), 1)).payload == "C"


async def test_acquire_broken_adapter_fails_all_that_wait_and_frees_the_place() -> None:
    shelf = Shelf(1)
    asked = [shelf.ask("broken"), shelf.ask("broken"), shelf.ask("a")]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found[:2]] == [ValueError, ValueError]
    assert found[2].payload == "A"
    assert shelf.places.num_loads == 1


async def test_acquire_waits_past_patience_closes_the_place_with_the_fewest_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = Shelf(2)
    busy = [await shelf.ask("a"), await shelf.ask("a")]
    quiet = await shelf.ask("b")
    waiting = shelf.ask("c")
    await settle()
    shelf.places.release(passing := await shelf.ask("b"))
    assert passing is quiet
    monkeypatch.setattr(residency_module, "PATIENCE_S", 0.0)
    late = shelf.ask("b")
    assert (await shelf.ask("a")) is busy[0]
    await settle()
    assert not late.done()
    shelf.places.release(quiet)
    assert (await waiting).payload == "C"
    assert not late.done()
    shelf.places.release(waiting.result())
    assert (await late).payload == "B"


async def test_pin_stays_through_evictions_until_unpinned() -> None:
    shelf = Shelf(2)
    await shelf.places.pin(lora("a"))
    for name in "bcd":
        shelf.places.release(await shelf.ask(name))
    assert shelf.places.resident == ("a", "d")
    shelf.places.unpin("a")
    shelf.places.unpin("unknown")
    shelf.places.release(await shelf.ask("e"))
    assert shelf.places.resident == ("d", "e")


async def test_pin_no_place_left_is_refused_and_so_are_those_that_would_wait_for_ever() -> None:
    shelf = Shelf(1)
    held = await shelf.ask("a")
    with pytest.raises(ResourceExhaustedError):
        await shelf.places.pin(lora("b"))
    waiting = shelf.ask("c")
    await settle()
    await shelf.places.pin(lora("a"))
    with pytest.raises(ResourceExhaustedError):
        await waiting
    shelf.places.release(held)
    with pytest.raises(ResourceExhaustedError):
        await shelf.ask("b")
    shelf.places.unpin("a")
    with pytest.raises(ValueError, match="broken"):
        await shelf.places.pin(lora("broken"))
    assert shelf.places.resident == ()


async def test_clear_fails_whoever_waits_and_forgets_all() -> None:
    shelf = Shelf(1)
    held = await shelf.ask("a")
    waiting = shelf.ask("b")
    await settle()
    shelf.places.clear(UnavailableError("gone"))
    with pytest.raises(UnavailableError):
        await waiting
    shelf.may_load.clear()
    loading = shelf.ask("c")
    await settle()
    shelf.places.clear(UnavailableError("gone"))
    with pytest.raises(UnavailableError):
        await loading
    shelf.may_load.set()
    shelf.places.release(held)
    assert shelf.places.resident == ()
    assert (await shelf.ask("a")).payload == "A"
