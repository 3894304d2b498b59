"""Servers put together from settings: several on one registry and store, with either of them gone, and who may call."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapters.errors import AdapterNotReadyError, StoreError
from adapters.registry import Change, Registry, VersionRecord, VersionState
from server.access.keys import KeyRing
from server.core.errors import FailedPreconditionError, UnauthenticatedError
from server.core.principal import Scope, anonymous
from server.core.request import GenerationRequest
from server.core.sampling import SamplingParams
from server.engine.factory import EngineConfig
from server.evaluation.config import EvaluationConfig
from server.runtime.container import Container
from server.runtime.data_dir import read_instance
from server.service.health import Phase
from server.settings import Settings
from tests.fixtures.peft_files import Files, lora_files
from tests.fixtures.postgres import PostgresServer, postgres_server  # noqa: F401 - a fixture

ANYONE = anonymous()
SEEN_WITHIN_S = 10.0
Start = Callable[..., Awaitable[Container]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start servers, each with a data directory of its own, that share a registry and a store unless told otherwise."""
    stack = AsyncExitStack()

    async def make(name: str, **options: Any) -> Container:
        shared = {
            "registry": {"url": f"sqlite:///{tmp_path / 'registry.db'}", "poll_s": 0.05},
            "store": {"url": str(tmp_path / "store")},
        }
        return await stack.enter_async_context(started(tmp_path / name, **(shared | options)))

    yield make
    await stack.aclose()


@asynccontextmanager
async def started(data_dir: Path, **options: Any) -> AsyncIterator[Container]:
    plain: dict[str, Any] = {
        "engine": EngineConfig(name="fake", step_time_s=0.005),
        "evaluation": EvaluationConfig(warm_at_start=False),
        "data_dir": data_dir,
        "library": data_dir / "none",
    }
    container = Container(Settings(**(plain | options)))
    try:
        await container.start()
        container.services.health.enter(Phase.SERVING)
        yield container
    finally:
        await container.stop()


async def upload(server: Container, seed: int, alias: str | None = None, name: str = "lora") -> VersionRecord:
    async with server.services.uploads.stage(ANYONE, name) as staged:
        for file_name, data in lora_files(seed).items():
            await staged.write(file_name, data)
        return await server.services.uploads.commit(staged, alias=alias)


async def served(server: Container, reference: str = "lora", text: str = "x", request_id: str = "r") -> int:
    """Return the version that served a request."""
    request = GenerationRequest(request_id, text, adapters=(reference,), sampling=SamplingParams(max_new_tokens=256))
    return (await (await server.services.inference.open(ANYONE, request)).result()).adapters[0].version


async def until(happened: Callable[[], Awaitable[bool]], within_s: float = SEEN_WITHIN_S) -> None:
    until_s = time.monotonic() + within_s
    while not await happened():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)


async def seen(server: Container, *numbers: int, name: str = "lora") -> None:
    """Wait until a server knows these versions of an adapter as ready."""

    async def is_seen() -> bool:
        records = {record.name: record for record in await server.services.adapters.list(ANYONE)}
        versions = records[name].versions if name in records else ()
        return {v.version for v in versions if v.state is VersionState.READY} >= set(numbers)

    await until(is_seen)


async def test_promotion_is_seen_by_the_other_server_without_a_failed_request(start: Start) -> None:
    one, two = await asyncio.gather(start("one"), start("two"))
    await upload(one, 1, "stable")
    await upload(one, 2)
    await seen(two, 1, 2)
    long = asyncio.create_task(served(two, text="x" * 200, request_id="long"))
    versions: list[int] = []

    async def ask_on() -> None:
        while 2 not in versions[-5:]:
            versions.append(await served(two, request_id=f"r{len(versions)}"))

    asking = asyncio.create_task(ask_on())
    await asyncio.sleep(0.1)
    await one.services.adapters.set_alias(ANYONE, "lora", "stable", 2)
    assert await served(one) == 2
    await asyncio.wait_for(asking, SEEN_WITHIN_S)
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert not long.done()
    assert await long == 1


async def test_version_retired_elsewhere_is_refused_and_its_running_requests_end(start: Start) -> None:
    one, two = await asyncio.gather(start("one"), start("two"))
    await upload(one, 1, "stable")
    await seen(two, 1)
    long = asyncio.create_task(served(two, text="x" * 200, request_id="long"))
    await asyncio.sleep(0.05)
    await one.services.adapters.delete(ANYONE, "lora", 1, force=True)

    async def is_refused() -> bool:
        try:
            return await served(two) != 1
        except AdapterNotReadyError:
            return True

    await until(is_refused)
    assert not long.done()
    assert await long == 1


async def test_library_of_servers_that_start_at_once_is_registered_once(start: Start, tmp_path: Path) -> None:
    shipped = tmp_path / "library"
    for name, files in {"lora": lora_files(1), "other": lora_files(2)}.items():
        written(shipped / name, files)
    servers = await asyncio.gather(*(start(f"server-{number}", library=shipped) for number in range(4)))
    for server in servers:
        registry_of(server).refresh()
        records = registry_of(server).list()
        assert [record.name for record in records] == ["lora", "other"]
        for record in records:
            [version] = record.versions
            assert (version.state, record.aliases) == (VersionState.READY, {"stable": version.version})


def registry_of(server: Container) -> Registry:
    assert server._registry is not None
    return server._registry


def written(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


async def test_resident_adapters_serve_on_while_the_store_cannot_be_reached(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"url": "memory://adapters-of-a-test", "sweep_every_s": 0.05}
    one, two = await asyncio.gather(start("one", store=store), start("two", store=store))
    for seed in (1, 2):
        await upload(one, seed)
    await seen(two, 1, 2)
    assert await served(two, "lora:1") == 1

    def unreachable(*_args: object, **_options: object) -> None:
        raise ConnectionError(111, "Connection refused")

    with monkeypatch.context() as outage:
        for name in ("_open", "cat_file", "info", "ls", "get_file", "pipe_file", "exists", "find", "modified", "open"):
            outage.setattr(MemoryFileSystem, name, unreachable)
        assert await served(two, "lora:1") == 1
        with pytest.raises(StoreError):
            await served(two, "lora:2")
        with pytest.raises(StoreError):
            await upload(one, 3)
        await asyncio.sleep(0.2)
    assert await served(two, "lora:2") == 2
    assert (await upload(one, 3)).state is VersionState.READY


async def test_inference_goes_on_while_the_database_is_down_and_changes_are_refused(
    start: Start,
    postgres_server: PostgresServer,  # noqa: F811
) -> None:
    name = postgres_server.make_database()
    server = await start("one", registry={"url": postgres_server.url(name), "poll_s": 0.05})
    await upload(server, 1, "stable")
    postgres_server.shut(name)
    await asyncio.sleep(0.3)
    assert await served(server) == 1
    with pytest.raises(StoreError):
        await server.services.adapters.set_alias(ANYONE, "lora", "canary", 1)
    with pytest.raises(StoreError):
        await upload(server, 2)
    assert (await server.services.adapters.get(ANYONE, "lora")).aliases == {"stable": 1}
    postgres_server.open(name)
    assert (await upload(server, 2, "stable")).version == 2
    assert await served(server) == 2


async def test_upload_of_an_earlier_life_is_forgotten_at_the_start(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    earlier = Registry(url, instance=read_instance(tmp_path / "one"))
    earlier.begin_version("lora", Change("me"), lease_s=3600)
    earlier.close()
    (tmp_path / "one" / "staging" / "half").mkdir(parents=True)
    server = await start("one")
    assert await server.services.adapters.list(ANYONE) == ()
    assert list((tmp_path / "one" / "staging").iterdir()) == []


async def test_sweep_removes_bytes_without_a_name_and_no_others(start: Start, tmp_path: Path) -> None:
    store = {"url": str(tmp_path / "store"), "sweep_every_s": 0.1, "sweep_grace_s": 0.5}
    server = await start("one", store=store)
    kept, deleted = await upload(server, 1, "stable"), await upload(server, 2)
    await server.services.adapters.delete(ANYONE, "lora", 2)

    async def is_gone() -> bool:
        return not (tmp_path / "store" / deleted.digest).exists()

    await until(is_gone, 5.0)
    assert (tmp_path / "store" / kept.digest).exists()
    assert await served(server) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
async def test_server_that_others_can_reach_does_not_start_without_keys(start: Start, host: str) -> None:
    with pytest.raises(FailedPreconditionError, match="medley keys create"):
        await start("one", host=host)


async def test_server_that_others_can_reach_may_be_told_to_run_open(start: Start) -> None:
    server = await start("one", host="0.0.0.0", access={"allow_open": True})
    assert server.services.access.authenticate(None, "10.0.0.1").who == "anonymous"


async def test_server_with_keys_asks_for_them_wherever_it_listens(start: Start, tmp_path: Path) -> None:
    local = await start("local", registry={"url": f"sqlite:///{tmp_path / 'registry.db'}", "poll_s": 0.05})
    assert local.services.access.authenticate(None, "").who == "anonymous"
    ring = KeyRing(f"sqlite:///{tmp_path / 'registry.db'}")
    token, key = ring.create("me", scopes=(Scope.INFER,), change=Change("test"))
    reachable = await start("reachable", host="0.0.0.0")

    async def asks() -> bool:
        try:
            return local.services.access.authenticate(None, "") is None
        except UnauthenticatedError:
            return True

    await until(asks)
    for server in (local, reachable):
        assert server.services.access.authenticate(token, "").who == f"key:{key.key_id}"
    ring.revoke(key.key_id, Change("test"))
    ring.close()

    async def is_refused() -> bool:
        try:
            return local.services.access.authenticate(token, "") is None
        except UnauthenticatedError:
            return True

    await until(is_refused)
