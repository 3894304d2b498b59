"""What only gRPC has: bytes that are no message, message sizes, the order of an upload, health watching."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medley.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc
from server.api.grpc.config import GrpcConfig
from server.api.grpc.server import create_server, serve_grpc
from server.api.grpc.services import SERVICE_NAMES
from server.core.errors import FailedPreconditionError
from server.service.health import Phase
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(server: RunningServer) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(server.grpc) as channel:
        yield channel


async def _status(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def _still_serves(channel: aio.Channel) -> None:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    assert (await stub.Summarize(inference_pb2.SummarizeRequest(text="still here"))).summary == "still here"


@pytest.mark.parametrize("method", ["Summarize", "Generate"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x1a\x01\x00"])
async def test_bytes_that_are_no_message_end_the_call_only(channel: aio.Channel, method: str, data: bytes) -> None:
    call = channel.unary_unary(f"/medley.v1.InferenceService/{method}")(data)
    assert await _status(call) is grpc.StatusCode.INVALID_ARGUMENT
    await _still_serves(channel)


async def test_bytes_that_are_no_message_end_a_stream_only(channel: aio.Channel) -> None:
    call = channel.unary_stream("/medley.v1.InferenceService/StreamSummarize")(b"\xff\xff\xff")
    assert await _status(call.read()) is grpc.StatusCode.INVALID_ARGUMENT
    await _still_serves(channel)


async def test_bytes_that_are_no_message_end_an_upload_only(channel: aio.Channel) -> None:
    call = channel.stream_unary("/medley.v1.AdapterService/UploadAdapter")(iter([b"\xff\xff\xff"]))
    assert await _status(call) is grpc.StatusCode.INVALID_ARGUMENT
    await _still_serves(channel)


async def test_unknown_method_is_unimplemented(channel: aio.Channel) -> None:
    call = channel.unary_unary("/medley.v1.InferenceService/Nothing")(b"")
    assert await _status(call) is grpc.StatusCode.UNIMPLEMENTED


async def test_message_over_its_limit_is_refused(channel: aio.Channel) -> None:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.Summarize(inference_pb2.SummarizeRequest(text="x" * (GrpcConfig().max_message_bytes + 1)))
    assert await _status(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await _still_serves(channel)


HEADER = adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(name="one"))
ARCHIVE = adapter_pb2.UploadAdapterRequest(archive=b"x")
CHUNK = adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.FileChunk(file_name="adapter_config.json", data=b"{}"))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [CHUNK],
        [ARCHIVE],
        [HEADER, HEADER],
        [HEADER, CHUNK, HEADER],
        [adapter_pb2.UploadAdapterRequest()],
        [HEADER, adapter_pb2.UploadAdapterRequest()],
        [HEADER, CHUNK, ARCHIVE],
        [HEADER, ARCHIVE, CHUNK],
    ],
    ids=[
        "nothing",
        "no-header",
        "no-header-of-archive",
        "two-headers",
        "late-header",
        "empty-message",
        "empty-part",
        "archive-after-files",
        "files-after-archive",
    ],
)
async def test_upload_out_of_order_is_an_invalid_argument(
    channel: aio.Channel, messages: list[adapter_pb2.UploadAdapterRequest]
) -> None:
    stub: Any = adapter_pb2_grpc.AdapterServiceStub(channel)
    assert await _status(stub.UploadAdapter(iter(messages))) is grpc.StatusCode.INVALID_ARGUMENT


class TestHealth:
    @pytest.mark.parametrize("service", ["", *SERVICE_NAMES])
    async def test_each_service_follows_readiness(
        self, channel: aio.Channel, server: RunningServer, service: str
    ) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        health = server.container.services.health
        assert (await stub.Check(request)).status == SERVING
        watch = stub.Watch(request)
        assert (await watch.read()).status == SERVING
        health.enter(Phase.DRAINING)
        try:
            assert (await watch.read()).status == NOT_SERVING
            assert (await stub.Check(request)).status == NOT_SERVING
        finally:
            health.enter(Phase.SERVING)
        assert (await watch.read()).status == SERVING
        watch.cancel()

    async def test_list_has_every_service(self, channel: aio.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.List(health_pb2.HealthListRequest())
        assert {name: entry.status for name, entry in answer.statuses.items()} == dict.fromkeys(
            ["", *SERVICE_NAMES], SERVING
        )

    async def test_unknown_service_is_not_found(self, channel: aio.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="nothing")
        assert await _status(stub.Check(request)) is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request)
        assert (await watch.read()).status == SERVICE_UNKNOWN
        watch.cancel()


async def test_address_in_use_is_told(server: RunningServer) -> None:
    other = create_server(server.container.services, GrpcConfig())
    port = int(server.grpc.rpartition(":")[2])
    with pytest.raises(FailedPreconditionError, match=str(port)):
        await serve_grpc(other, "127.0.0.1", port, lambda _: None)
