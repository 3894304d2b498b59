"""Heads of HTTP requests have a size limit, whichever way a large one comes."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection

import pytest

from server.api.http.head_limit import MAX_HEAD_BYTES
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: here\r\n"


async def send(server: RunningServer, pieces: Sequence[bytes]) -> bytes | None:
    """Send pieces one after the other and return all that is answered; None where the server hung up meanwhile."""
    reader, writer = await asyncio.open_connection(*server.http.rpartition("://")[2].split(":"))
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write_eof()
            return await reader.read()
    except OSError:
        # What it answered before may be lost on the way.
        return None
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([REQUEST, b"x: " + b"a" * MAX_HEAD_BYTES, b"\r\n\r\n"], id="one header"),
        pytest.param([REQUEST, b"".join(b"x%d: y\r\n" % n for n in range(20_000)), b"\r\n"], id="many headers"),
        pytest.param([b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n"], id="path"),
        pytest.param([REQUEST, b"x: ", *[b"a" * 1000] * 1000], id="a header that never ends"),
    ],
)
async def test_head_too_large_is_refused(server: RunningServer, pieces: Sequence[bytes]) -> None:
    answer = await send(server, pieces)
    assert answer is None or answer.startswith(b"HTTP/1.1 400 ")


async def test_each_head_of_a_connection_has_a_limit_of_its_own(server: RunningServer) -> None:
    def ask_thrice() -> list[tuple[int, bool]]:
        statuses = []
        with closing(HTTPConnection(server.http.rpartition("://")[2], timeout=20)) as connection:
            for body in ("", "no JSON" * MAX_HEAD_BYTES, ""):
                connection.request("POST", "/v1/summarize", body, {"x": "a" * (MAX_HEAD_BYTES - 1000)})
                answer = connection.getresponse()
                answer.read()
                statuses.append((answer.status, connection.sock is not None))
        return statuses

    assert await asyncio.to_thread(ask_thrice) == [(400, True)] * 3


@pytest.mark.parametrize(
    "junk", [b"\x00\xff\x16\x03", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"]
)
async def test_what_is_no_request_is_refused(server: RunningServer, junk: bytes) -> None:
    answer = await send(server, [junk])
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_request_with_two_lengths_is_refused(server: RunningServer) -> None:
    two = b"POST /v1/summarize HTTP/1.1\r\nhost: here\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = await send(server, [two, b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: here\r\n\r\n"])
    assert answer is None or answer.startswith(b"HTTP/1.1 400 ")
