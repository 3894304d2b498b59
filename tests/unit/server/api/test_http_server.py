"""Running the HTTP application: ports, readiness, a clean end."""

import asyncio

import httpx
import pytest

from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from server.api.http.server import serve_http
from server.core.errors import FailedPreconditionError
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_cancelled_server_lets_a_running_answer_end(server: RunningServer) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = create_app(server.container.services, HttpConfig())
    serving = asyncio.create_task(serve_http(app, "127.0.0.1", 0, port.set_result))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:
        answer = asyncio.create_task(client.post("/v1/summarize", json={"text": "x" * 100}))
        async with asyncio.timeout(5):
            while not server.stats().num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        serving.cancel()
        assert (await answer).json()["summary"] == "x" * 100
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")


async def test_address_in_use_is_told(server: RunningServer) -> None:
    app = create_app(server.container.services, HttpConfig())
    port = int(server.http.rpartition(":")[2])
    with pytest.raises(FailedPreconditionError, match=str(port)):
        await serve_http(app, "127.0.0.1", port, lambda _: None)
