"""Transfers that stop half-way, crawl, or lie about their length: an answer or a closed door, and nothing left."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import StatusCode, aio

from medley.v1 import adapter_pb2 as pb
from medley.v1 import adapter_pb2_grpc
from server.evaluation.config import EvaluationConfig
from server.service.adapters import CatalogConfig
from tests.fixtures.front_end_clients import Call
from tests.fixtures.lifecycle_clients import HttpLifecycle
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server
from tests.hostile.left import left

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE_S = 3.0
NO_SCORER = EvaluationConfig(warm_at_start=False)
PATH = "/v1/adapters/half/versions"
BOUNDARY = b"b0undary"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(data_dir: Path) -> AsyncIterator[RunningServer]:
    catalog = CatalogConfig(upload_lease_s=LEASE_S)
    async with running_server(data_dir, fake_engine(), catalog=catalog, evaluation=NO_SCORER) as running:
        async with HttpLifecycle(running) as client:
            await client.push("sound", lora_files())
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def nothing_left(server: RunningServer, data_dir: Path) -> AsyncIterator[None]:
    """Fails unless, soon after the test, the server keeps what it kept before, and serves."""
    before = await asyncio.to_thread(left, data_dir)
    yield
    async with asyncio.timeout(5):
        while await asyncio.to_thread(left, data_dir) != before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    async with HttpLifecycle(server) as client:
        assert (await client.summarize(Call(adapters=["sound"]))).text
        async with asyncio.timeout(5):
            # What the server knows of its registry is a moment behind.
            while [adapter["name"] for adapter in await client.adapters()] != ["sound"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def multipart() -> bytes:
    """A sound upload's body."""
    body = b""
    for name, data in lora_files(9).items():
        body += b"--%b\r\n" % BOUNDARY
        body += f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--%b--\r\n" % BOUNDARY


async def exchange(server: RunningServer, head: str, body: bytes, *, pause_s: float = 0, is_cut: bool = False) -> bytes:
    """Send a head and a body as they are; return what came back until the server closed, nothing where we did."""
    host, port = server.http.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        step = 64 if pause_s else max(len(body), 1)
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            await asyncio.sleep(pause_s)
            if reader.at_eof() or (pause_s and reader._buffer):  # type: ignore[attr-defined]
                break
        if is_cut:
            await asyncio.sleep(0.1)
            return b""
        async with asyncio.timeout(10):
            return await reader.read(65536)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def _form(length: int | str) -> str:
    return f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\nContent-Length: {length}"


def error_of(answer: bytes) -> dict[str, str]:
    """The error object of an answer."""
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
async def test_connection_cut_in_the_body_leaves_nothing(
    server: RunningServer, nothing_left: None, share: float
) -> None:
    body = multipart()
    await exchange(server, _form(len(body)), body[: int(len(body) * share)], is_cut=True)


async def test_connection_cut_in_a_chunk_leaves_nothing(server: RunningServer, nothing_left: None) -> None:
    body = multipart()
    head = _form(0).replace("Content-Length: 0", "Transfer-Encoding: chunked")
    await exchange(server, head, b"%x\r\n" % len(body) + body[:300], is_cut=True)


async def test_body_shorter_than_its_boundary_is_refused(server: RunningServer, nothing_left: None) -> None:
    body = multipart()[:-20]
    answer = await exchange(server, _form(len(body)), body)
    assert error_of(answer)["code"] == "INVALID_ARGUMENT"
    assert "ends before its last boundary" in error_of(answer)["message"]


async def test_content_length_that_says_less_is_refused(server: RunningServer, nothing_left: None) -> None:
    answer = await exchange(server, _form(200), multipart())
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("length", ["-5", "many", "99999999999999999999999999", "5, 6"])
async def test_content_length_that_is_no_number_is_refused(
    server: RunningServer, nothing_left: None, length: str
) -> None:
    answer = await exchange(server, _form(length), multipart(), is_cut=length.isdigit())
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("multipart/form-data", "boundary"),
        ("multipart/form-data; boundary=", "boundary"),
        ("multipart/form-data; boundary=" + "a" * 300, "boundary"),
        ("application/octet-stream", "content"),
        ("application/x-pickle", "content"),
        ("", "content"),
    ],
)
async def test_body_of_no_known_kind_is_refused(
    server: RunningServer, nothing_left: None, kind: str, message: str
) -> None:
    body = multipart()
    answer = await exchange(server, f"Content-Type: {kind}\r\nContent-Length: {len(body)}", body)
    assert error_of(answer)["code"] == "INVALID_ARGUMENT"
    assert message in error_of(answer)["message"].lower()


async def test_body_that_crawls_is_given_up(server: RunningServer, nothing_left: None) -> None:
    body = multipart()
    answer = await exchange(server, _form(len(body)), body, pause_s=0.4)
    assert error_of(answer)["code"] == "DEADLINE_EXCEEDED"


def _messages(name: str = "half") -> list[pb.UploadAdapterRequest]:
    chunks = [pb.FileChunk(file_name=file_name, data=data) for file_name, data in lora_files(9).items()]
    return [
        pb.UploadAdapterRequest(header=pb.UploadHeader(name=name)),
        *(pb.UploadAdapterRequest(chunk=chunk) for chunk in chunks),
    ]


@pytest.mark.parametrize("num_messages", [0, 1, 2])
async def test_stream_cancelled_in_the_middle_leaves_nothing(
    server: RunningServer, nothing_left: None, num_messages: int
) -> None:
    async with aio.insecure_channel(server.grpc) as channel:
        call = adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter()
        for message in _messages()[:num_messages]:
            await call.write(message)
        await asyncio.sleep(0.1)
        call.cancel()


async def test_stream_that_crawls_is_given_up(server: RunningServer, nothing_left: None) -> None:
    async with aio.insecure_channel(server.grpc) as channel:
        call = adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter()
        await call.write(_messages()[0])
        assert await call.code() == StatusCode.DEADLINE_EXCEEDED


_UNORDERED: dict[str, Callable[[], list[pb.UploadAdapterRequest]]] = {
    "nothing": list,
    "no header": lambda: _messages()[1:],
    "two headers": lambda: [_messages()[0], *_messages()],
    "empty message": lambda: [_messages()[0], pb.UploadAdapterRequest()],
    "header alone": lambda: _messages()[:1],
    "files and an archive": lambda: [*_messages(), pb.UploadAdapterRequest(archive=b"PK")],
}


@pytest.mark.parametrize("case", _UNORDERED)
async def test_stream_out_of_order_is_refused(server: RunningServer, nothing_left: None, case: str) -> None:
    async with aio.insecure_channel(server.grpc) as channel:
        call = adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter(iter(_UNORDERED[case]()))
        assert await call.code() == StatusCode.INVALID_ARGUMENT
