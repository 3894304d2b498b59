"""What becomes of a caller who takes nothing of its answer or ends no request; over both protocols."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc import aio

from benchmarks.slow_readers import SlowReaders, SlowReading
from medley.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc
from server.api.http.patience import MAX_UNSENT_BYTES, PatientProtocol, bound_unsent
from server.service.adapters import CatalogConfig
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

STALL_TIMEOUT_S = 0.5
IMPATIENCE = {"stall_timeout_s": STALL_TIMEOUT_S}
# More than a window of gRPC even in one piece.
NUM_TOKENS = 10_000
TEXT = "x" * NUM_TOKENS
NARROW = (("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    engine = fake_engine(max_model_len=2 * NUM_TOKENS, max_new_tokens=NUM_TOKENS)
    async with running_server(tmp_path_factory.mktemp("server"), engine, http=IMPATIENCE, grpc=IMPATIENCE) as running:
        yield running


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_caller_who_takes_nothing_is_cancelled_and_holds_nothing(impatient: RunningServer, protocol: str) -> None:
    service = impatient.container.services.inference
    before = await num_cancelled(impatient)
    address = impatient.http.rpartition("/")[2] if protocol == "http" else impatient.grpc
    reading = SlowReading(protocol, address, 3, TEXT, NUM_TOKENS, every_s=0, num_logprobs=5)
    readers = SlowReaders(reading)
    task = asyncio.create_task(readers.read())
    try:
        await readers.begun()
        assert service._num_open == 3
        async with asyncio.timeout(20):
            while service._num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await impatient.idle()
        # Each of them once, though they are still there.
        assert await num_cancelled(impatient) - before == 3
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


BODY = b'{"text": "one two"}'
HEAD = b"POST /v1/summarize HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 19\r\n"


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n" + BODY[:9]], ids=["nothing", "half a head", "half a body"])
async def test_connection_whose_caller_falls_silent_is_broken_off(impatient: RunningServer, sent: bytes) -> None:
    reader, writer = await _connected(impatient)
    writer.write(sent)
    async with asyncio.timeout(20):
        with suppress(ConnectionResetError):
            await reader.read()
    writer.close()
    await impatient.idle()


async def test_caller_who_sends_slowly_is_answered(impatient: RunningServer) -> None:
    reader, writer = await _connected(impatient)
    for piece in (HEAD[:9], HEAD[9:] + b"\r\n", BODY[:4], BODY[4:9], BODY[9:]):
        writer.write(piece)
        await asyncio.sleep(0.8 * STALL_TIMEOUT_S)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_connection_is_kept_while_its_caller_waits_for_an_answer(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, fake_engine(step_time_s=STALL_TIMEOUT_S), http=IMPATIENCE) as running,
        httpx.AsyncClient(base_url=running.http, timeout=60) as client,
    ):
        answer = await client.post("/v1/completions", json={"prompt": TEXT[:9], "max_tokens": 4, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == 4


async def test_upload_whose_sender_falls_silent_ends_and_gives_up_its_place(impatient: RunningServer) -> None:
    num_at_once = CatalogConfig().max_num_uploads

    async def silent() -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
        yield adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(name="silent"))
        await asyncio.Event().wait()

    async with aio.insecure_channel(impatient.grpc) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        # One for each place; the second time only if all were given up the first time.
        for _ in range(2):
            calls = [stub.UploadAdapter(silent()) for _ in range(num_at_once)]
            async with asyncio.timeout(30):
                codes = [await call.code() for call in calls]
            assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * num_at_once


async def _connected(server: RunningServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.http.rpartition("/")[2].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_grpc_caller_who_comes_back_learns_why(impatient: RunningServer) -> None:
    async with aio.insecure_channel(impatient.grpc, options=NARROW) as channel:
        call = await _begun_stream(channel)
        await impatient.idle()
        async with asyncio.timeout(20):
            while impatient.container.services.inference._num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(aio.AioRpcError) as caught:
            await _read_on(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "took nothing of the stream" in str(caught.value.details())


async def test_stream_beside_one_that_is_not_read_on_the_same_connection_goes_on(impatient: RunningServer) -> None:
    async with aio.insecure_channel(impatient.grpc, options=NARROW) as channel:
        stalled = await _begun_stream(channel)
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        pieces = [piece.delta async for piece in stub.StreamGenerate(_ask("y" * 200))]
        assert "".join(pieces) == "y" * 200
        stalled.cancel()
    await impatient.idle()


async def test_call_ends_even_if_its_status_is_not_taken(
    impatient: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.grpc.errors._MAX_ENDING_S", 0.2)
    access = impatient.container.services.access
    entered = monkeypatch_entered(access, monkeypatch)
    async with aio.insecure_channel(impatient.grpc, options=NARROW) as channel:
        call = await _begun_stream(channel)
        async with asyncio.timeout(20):
            while entered.count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not call.done()


@pytest.mark.parametrize(("sizes", "num_looks"), [([9, 9], 1), ([9, 5, 5], 2), ([9, 8, 7, 3, 3], 4)])
async def test_connection_is_broken_off_once_nothing_was_taken_between_two_looks(
    sizes: list[int], num_looks: int
) -> None:
    transport = FakeTransport(iter(sizes))
    protocol = patient(transport)
    protocol.pause_writing()
    async with asyncio.timeout(5):
        await transport.aborted.wait()
    assert transport.num_looked == num_looks + 1


async def test_connection_whose_caller_caught_up_is_left_alone() -> None:
    transport = FakeTransport(iter([9]))
    protocol = patient(transport)
    protocol.pause_writing()
    protocol.resume_writing()
    await asyncio.sleep(0.05)
    assert not transport.aborted.is_set()


@pytest.mark.parametrize(("num_left", "ending"), [(7, "aborted"), (0, "closed")])
async def test_idle_connection_with_something_not_taken_is_broken_off(num_left: int, ending: str) -> None:
    transport = FakeTransport(iter([num_left]))
    patient(transport).timeout_keep_alive_handler()
    assert (transport.aborted.is_set(), transport.is_closed) == (ending == "aborted", ending == "closed")


@pytest.mark.parametrize(("sizes", "num_looks"), [([9, 9], 2), ([9, 5, 5], 3)])
async def test_connection_that_closes_is_broken_off_once_nothing_more_is_taken(
    sizes: list[int], num_looks: int
) -> None:
    transport = FakeTransport(iter(sizes), is_closing=True)
    patient(transport)._listen_later()
    async with asyncio.timeout(5):
        await transport.aborted.wait()
    assert transport.num_looked == num_looks


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such bound")
async def test_connections_made_through_a_listener_keep_little_unsent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bound_unsent(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
            bound = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    assert bound == MAX_UNSENT_BYTES


class FakeTransport:
    """Says how much it holds."""

    def __init__(self, sizes: Iterator[int], *, is_closing: bool = False) -> None:
        self._sizes, self._is_closing = sizes, is_closing
        self.num_looked = 0
        self.aborted = asyncio.Event()
        self.is_closed = False

    def get_write_buffer_size(self) -> int:
        self.num_looked += 1
        return next(self._sizes)

    def is_closing(self) -> bool:
        return self._is_closing

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.is_closed = True


def patient(transport: FakeTransport) -> Any:
    """Return a protocol on a transport, without the library around it."""
    protocol: Any = PatientProtocol.__new__(PatientProtocol)
    protocol.transport, protocol.client, protocol.loop = transport, ("here", 1), asyncio.get_running_loop()
    protocol.flow = SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None)
    protocol._stall_timeout_s, protocol._looking, protocol._num_left_at_close = 0.01, None, None
    return protocol


class Entered:
    count = 0


def monkeypatch_entered(access: Any, monkeypatch: pytest.MonkeyPatch) -> Entered:
    """Count the calls that are inside the access layer."""
    counted, entered = Entered(), type(access).entered

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            self._inner = entered(access, *arguments)

        def __enter__(self) -> None:
            self._inner.__enter__()
            counted.count += 1

        def __exit__(self, *error: Any) -> None:
            counted.count -= 1
            self._inner.__exit__(*error)

    monkeypatch.setattr(type(access), "entered", lambda _self, *arguments: Counting(*arguments))
    return counted


async def num_cancelled(server: RunningServer) -> int:
    async with httpx.AsyncClient(base_url=server.http) as client:
        page = (await client.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("medley_requests_total") and "CANCELLED" in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


def _ask(text: str) -> inference_pb2.StreamGenerateRequest:
    sampling = inference_pb2.SamplingOptions(max_new_tokens=NUM_TOKENS)
    return inference_pb2.StreamGenerateRequest(prompt=text, sampling=sampling)


async def _read_on(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass


async def _begun_stream(channel: aio.Channel) -> Any:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.StreamGenerate(_ask(TEXT))
    await call.read()
    return call
