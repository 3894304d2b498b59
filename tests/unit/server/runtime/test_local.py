"""A whole server in this process: up, ready, drained, down. The scorer is a toy, so that nothing heavy is imported."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from server.core.errors import FailedPreconditionError, MedleyError
from server.engine.factory import EngineConfig
from server.runtime import container, local
from server.runtime.data_dir import locked
from server.runtime.local import Addresses, serve
from server.settings import Settings


class ToyScorer:
    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        return {"rouge1": 100.0 * (prediction in references)}

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _toy_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ScoringProcess", ToyScorer)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**options: object) -> Settings:
        engine = EngineConfig(name="fake", step_time_s=0.01)
        plain: dict[str, object] = {"port": 0, "grpc_port": 0, "data_dir": tmp_path / "data", "engine": engine}
        return Settings(**(plain | {"library": tmp_path / "library", "drain_grace_s": 5} | options))  # type: ignore[arg-type]

    return make


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Addresses, "asyncio.Task[None]"]]:
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(settings, ready.set_result))
    await asyncio.wait({ready, server}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert ready.done()
    try:
        yield ready.result(), server
    finally:
        if not server.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({server}, timeout=20)


def summarize(client: httpx.AsyncClient, address: str, text: str = "hello") -> Awaitable[httpx.Response]:
    return client.post(f"http://{address}/v1/summarize", json={"text": text})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_running_requests_refuses_new_ones_and_ends_cleanly(
    settings: Callable[..., Settings], tmp_path: Path, number: int
) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("of a server that crashed")
    async with running(settings(ready_file=ready_file)) as (addresses, server), httpx.AsyncClient() as client:
        told = json.loads(ready_file.read_text())
        assert told == {"http": addresses.http, "grpc": addresses.grpc, "pid": os.getpid()}
        assert (await client.get(f"http://{addresses.http}/readyz")).status_code == 200
        open_request = asyncio.ensure_future(summarize(client, addresses.http, "x" * 100))
        async with asyncio.timeout(10):
            while not (await client.get(f"http://{addresses.http}/v1/status")).json()["num_running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        assert (await client.get(f"http://{addresses.http}/readyz")).status_code == 503
        assert (await summarize(client, addresses.http)).status_code == 503
        assert (await open_request).json()["summary"] == "x" * 100
        await asyncio.wait_for(server, 10)
    assert not ready_file.exists()
    with locked(tmp_path / "data"):
        pass


async def test_request_that_outlives_the_grace_is_ended(settings: Callable[..., Settings]) -> None:
    async with running(settings(drain_grace_s=0.05)) as (addresses, server), httpx.AsyncClient() as client:
        open_request = asyncio.ensure_future(summarize(client, addresses.http, "x" * 100))
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await open_request).is_error
        await asyncio.wait_for(server, 10)


async def test_port_that_is_taken_stops_the_whole_server_with_that_cause(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(FailedPreconditionError, match="cannot listen"):
        await serve(settings(port=taken.getsockname()[1]), lambda _: pytest.fail("it never was ready"))
    with locked(tmp_path / "data"):
        pass


async def test_front_end_that_breaks_takes_the_server_down_with_its_error(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **_options: object) -> None:
        args[3](1)  # type: ignore[operator]
        await asyncio.sleep(0.1)
        raise RuntimeError("broken wire")

    monkeypatch.setattr(local, "serve_grpc", broken)
    with pytest.raises(RuntimeError, match="broken wire"):
        await asyncio.wait_for(serve(settings(), lambda _: None), 20)


async def test_signal_while_starting_ends_cleanly(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(_engine: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    monkeypatch.setattr("server.engine.fake.FakeEngine.start", slow)
    await asyncio.wait_for(serve(settings(), lambda _: pytest.fail("it never was ready")), 10)
    with locked(tmp_path / "data"):
        pass


async def test_second_server_on_one_data_dir_is_refused(settings: Callable[..., Settings]) -> None:
    async with running(settings()):
        with pytest.raises(MedleyError, match="another server"):
            await serve(settings(), lambda _: None)


async def test_start_removes_uploads_a_crash_left_behind(settings: Callable[..., Settings], tmp_path: Path) -> None:
    left = tmp_path / "data" / "staging" / "left"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").touch()
    async with running(settings()):
        assert not left.exists()


async def test_ready_file_that_cannot_be_written_stops_the_server(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with pytest.raises(FailedPreconditionError, match="ready file"):
        await asyncio.wait_for(serve(settings(ready_file=tmp_path / "none" / "ready.json"), lambda _: None), 20)
