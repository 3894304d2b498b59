"""Leases: taken without waiting where all is known, held while bytes are fetched, and given back on every path."""

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterNotFoundError, StoreError
from adapters.manifest import AdapterKind
from adapters.registry import VersionRecord, VersionState, parse_reference
from adapters.registry_records import no_adapter
from server.core.errors import InvalidArgumentError
from server.core.principal import Principal, Scope
from server.service.directory import AdapterDirectory, ServableAdapter, lease_word
from tests.unit.server.service.conftest import ANYONE

KINDS = {"lora": AdapterKind.LORA, "soft": AdapterKind.PROMPT, "other": AdapterKind.LORA}


class Registry:
    def __init__(self) -> None:
        self.version = 1

    def resolve(self, reference: str) -> VersionRecord:
        name = parse_reference(reference).name
        if name not in KINDS:
            raise no_adapter(name)
        digest = lease_word(name, self.version)
        return VersionRecord(name, self.version, digest, KINDS[name], VersionState.READY)


class Store:
    """Fetches what it is told to let through; refuses to be unpinned more often than it was pinned."""

    def __init__(self) -> None:
        self.pins: Counter[str] = Counter()
        self.verified: set[str] = set()
        self.num_fetches = 0
        self.broken = False
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def pin(self, digest: str) -> None:
        self.pins[digest] += 1

    def unpin(self, digest: str) -> None:
        assert self.pins[digest] > 0
        self.pins[digest] -= 1
        if not self.pins[digest]:
            del self.pins[digest]

    def verified_path(self, digest: str) -> Path | None:
        return Path(digest) if digest in self.verified else None

    def local_path(self, digest: str) -> Path:
        self.num_fetches += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self.broken:
            raise StoreError("the store cannot be read")
        self.verified.add(digest)
        return Path(digest)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def directory(registry: Registry, store: Store) -> AdapterDirectory:
    return AdapterDirectory(registry, store)  # type: ignore[arg-type]


def take(directory: AdapterDirectory, *references: str) -> "asyncio.Task[tuple[ServableAdapter, ...]]":
    return asyncio.create_task(directory.lease(ANYONE, references))


async def test_lease_of_known_bytes_does_not_wait(directory: AdapterDirectory, store: Store) -> None:
    directory.release(await directory.lease(ANYONE, ("lora", "soft")))
    leasing = directory.lease(ANYONE, ("soft@stable", "lora:1"))
    with pytest.raises(StopIteration) as done:
        leasing.send(None)
    adapters = done.value.value
    assert [adapter.use.name for adapter in adapters] == ["soft", "lora"]
    assert store.pins.total() == 2
    assert directory.leased() == {lease_word("lora", 1), lease_word("soft", 1)}
    directory.release(adapters)
    assert (dict(store.pins), directory.leased()) == ({}, frozenset())


async def test_leases_of_unknown_bytes_at_once_fetch_once(directory: AdapterDirectory, store: Store) -> None:
    adapters = await asyncio.gather(*(directory.lease(ANYONE, ("lora",)) for _ in range(10)))
    assert (store.num_fetches, directory.num_leases("lora", 1)) == (1, 10)
    for each in adapters:
        directory.release(each)
    assert not store.pins


async def test_version_is_pinned_while_it_is_fetched(directory: AdapterDirectory, store: Store) -> None:
    store.gate.clear()
    leasing = take(directory, "lora")
    await asyncio.to_thread(store.entered.wait, 5)
    assert (directory.num_leases("lora", 1), store.pins.total()) == (1, 1)
    store.gate.set()
    directory.release(await leasing)


async def test_caller_who_goes_away_leaves_the_fetch_to_the_others(directory: AdapterDirectory, store: Store) -> None:
    store.gate.clear()
    first, second = take(directory, "lora"), take(directory, "lora")
    await asyncio.to_thread(store.entered.wait, 5)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    assert directory.num_leases("lora", 1) == 1
    store.gate.set()
    directory.release(await second)
    assert (store.num_fetches, dict(store.pins)) == (1, {})


async def test_bytes_evicted_since_their_fetch_are_fetched_again(directory: AdapterDirectory, store: Store) -> None:
    store.gate.clear()
    gone = take(directory, "lora")
    await asyncio.to_thread(store.entered.wait, 5)
    gone.cancel()
    await asyncio.wait({gone})
    late = take(directory, "lora")
    await asyncio.sleep(0)
    store.gate.set()
    while store.num_fetches and not store.verified:  # noqa: ASYNC110 - a thread, without an event
        await asyncio.sleep(0)
    directory.release(await late)
    store.verified.clear()
    directory.release(await directory.lease(ANYONE, ("lora",)))
    assert store.num_fetches == 2


async def test_request_keeps_the_version_it_resolved_to(
    directory: AdapterDirectory, registry: Registry, store: Store
) -> None:
    store.gate.clear()
    before = take(directory, "lora")
    await asyncio.to_thread(store.entered.wait, 5)
    registry.version = 2
    after = take(directory, "lora")
    store.gate.set()
    assert [(await task)[0].use.version for task in (before, after)] == [1, 2]


async def test_failed_fetch_leaves_no_lease_and_is_tried_again(directory: AdapterDirectory, store: Store) -> None:
    store.broken = True
    for _ in range(2):
        with pytest.raises(StoreError):
            await directory.lease(ANYONE, ("lora", "soft"))
        await asyncio.sleep(0)
        assert (dict(store.pins), directory.leased()) == ({}, frozenset())
    assert store.num_fetches == 2
    store.broken = False
    assert len(await directory.lease(ANYONE, ("lora", "soft"))) == 2


@pytest.mark.parametrize("references", [("lora", "other"), ("lora", "lora"), ("lora", "soft", "other")])
async def test_two_adapters_of_one_role_are_refused_before_a_lease(
    directory: AdapterDirectory, store: Store, references: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidArgumentError):
        await directory.lease(ANYONE, references)
    assert not store.pins


async def test_name_that_does_not_exist_for_the_caller_is_not_found(directory: AdapterDirectory) -> None:
    tenant = Principal("key:t", frozenset({Scope.INFER}), ("soft", "none*"))
    assert len(await directory.lease(tenant, ("soft",))) == 1
    messages = []
    for name in ("lora", "none"):
        with pytest.raises(AdapterNotFoundError) as caught:
            await directory.lease(tenant, (f"{name}@stable",))
        messages.append(caught.value.message.replace(name, "?"))
    assert messages[0] == messages[1]


async def test_idle_comes_with_the_last_release_or_not_in_time(directory: AdapterDirectory) -> None:
    assert await directory.idle("lora", 1, timeout_s=0)
    first, second = [await directory.lease(ANYONE, ("lora",)) for _ in range(2)]
    assert not await directory.idle("lora", 1, timeout_s=0.01)
    waiting = asyncio.create_task(directory.idle("lora", 1, timeout_s=5))
    directory.release(first)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    directory.release(second)
    assert await waiting


COMBINATIONS = [("lora",), ("soft",), ("lora", "soft"), ("soft", "other"), ("none",), ("lora", "other"), ()]


class Interleaving:
    """Requests, promotions and a store that comes and goes, a step at a time."""

    def __init__(self) -> None:
        self.registry, self.store = Registry(), Store()
        self.directory = AdapterDirectory(self.registry, self.store)  # type: ignore[arg-type]
        self.tasks: list[asyncio.Task[tuple[ServableAdapter, ...]]] = []

    async def lease(self, number: int) -> None:
        self.tasks.append(take(self.directory, *COMBINATIONS[number % len(COMBINATIONS)]))

    async def release(self, number: int) -> None:
        ended = [task for task in self.tasks if task.done()]
        if ended:
            task = ended[number % len(ended)]
            self.tasks.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.directory.release(task.result())

    async def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()

    async def promote(self, _number: int) -> None:
        self.registry.version += 1

    async def fetch(self, number: int) -> None:
        (self.store.gate.set if number % 2 else self.store.gate.clear)()

    async def fail(self, _number: int) -> None:
        self.store.broken = not self.store.broken

    async def turn(self, number: int) -> None:
        await asyncio.sleep(0.0005 if number == 7 else 0)

    async def end(self) -> None:
        self.store.gate.set()
        while self.tasks:
            await asyncio.wait(self.tasks)
            await self.release(0)
            self.check()
        self.directory.close()

    def check(self) -> None:
        assert self.store.pins.total() == self.directory._leases.total()
        assert len(self.store.pins) == len(self.directory.leased())


STEPS = st.lists(
    st.tuples(st.sampled_from(["lease", "release", "cancel", "promote", "fetch", "fail", "turn"]), st.integers(0, 7)),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_leases_in_any_order_end_at_zero_and_pins_are_always_the_leases(steps: list[tuple[str, int]]) -> None:
    async def interleave() -> None:
        run = Interleaving()
        for action, number in steps:
            await getattr(run, action)(number)
            run.check()
        await run.end()
        assert (dict(run.store.pins), run.directory.leased()) == ({}, frozenset())

    asyncio.run(interleave())
