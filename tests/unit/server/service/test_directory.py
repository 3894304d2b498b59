"""Lookups beside each other, forgotten and given up; the registry here answers when it is told to."""

import asyncio
import threading
from pathlib import Path

import pytest

from adapters.errors import AdapterNotFoundError
from adapters.manifest import AdapterKind
from adapters.registry import VersionRecord, VersionState
from server.service.directory import AdapterDirectory


class GatedRegistry:
    def __init__(self) -> None:
        self.version = 1
        self.num_calls = 0
        self.entered = threading.Event()
        self.gate = threading.Event()

    def resolve(self, reference: str) -> VersionRecord:
        self.num_calls += 1
        version = self.version
        self.entered.set()
        assert self.gate.wait(10)
        if reference != "lora":
            raise AdapterNotFoundError("there is none")
        return VersionRecord("lora", version, f"{version}" * 64, AdapterKind.LORA, VersionState.READY)


class Store:
    def local_path(self, digest: str) -> Path:
        return Path(digest)


@pytest.fixture
def registry() -> GatedRegistry:
    return GatedRegistry()


@pytest.fixture
def directory(registry: GatedRegistry) -> AdapterDirectory:
    return AdapterDirectory(registry, Store(), remember_s=5.0, clock=lambda: 0.0)  # type: ignore[arg-type]


async def test_lookups_of_one_reference_at_once_ask_the_registry_once(
    directory: AdapterDirectory, registry: GatedRegistry
) -> None:
    registry.gate.set()
    await asyncio.gather(*(directory.lease(("lora",)) for _ in range(10)))
    assert registry.num_calls == 1
    assert directory.num_leases("1" * 64) == 10


async def test_caller_who_goes_away_leaves_the_lookup_to_the_others(
    directory: AdapterDirectory, registry: GatedRegistry
) -> None:
    first, second = (asyncio.create_task(directory.lease(("lora",))) for _ in range(2))
    await asyncio.to_thread(registry.entered.wait, 5)
    first.cancel()
    await asyncio.sleep(0)
    registry.gate.set()
    [adapter] = await second
    assert adapter.use.version == 1
    assert directory.num_leases(adapter.use.digest) == 1


async def test_lookup_that_began_before_a_change_is_not_used_after_it(
    directory: AdapterDirectory, registry: GatedRegistry
) -> None:
    before = asyncio.create_task(directory.lease(("lora",)))
    await asyncio.to_thread(registry.entered.wait, 5)
    registry.version = 2
    directory.forget()
    after = asyncio.create_task(directory.lease(("lora",)))
    await asyncio.sleep(0.05)
    registry.gate.set()
    assert [(await task)[0].use.version for task in (before, after)] == [1, 2]
    assert (await directory.lease(("lora",)))[0].use.version == 2


async def test_failed_lookup_is_not_remembered(directory: AdapterDirectory, registry: GatedRegistry) -> None:
    registry.gate.set()
    for _ in range(2):
        with pytest.raises(AdapterNotFoundError):
            await directory.lease(("other",))
    assert registry.num_calls == 2


async def test_answer_is_asked_again_when_its_time_is_up(registry: GatedRegistry) -> None:
    now_s = 0.0
    directory = AdapterDirectory(registry, Store(), remember_s=5.0, clock=lambda: now_s)  # type: ignore[arg-type]
    registry.gate.set()
    await directory.lease(("lora",))
    now_s = 4.9
    await directory.lease(("lora",))
    assert registry.num_calls == 1
    now_s = 5.1
    await directory.lease(("lora",))
    assert registry.num_calls == 2
