"""Generated messages, sound and unsound, for every gRPC method by its descriptor: no INTERNAL, no UNKNOWN, no crash."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from medley.v1 import adapter_pb2, evaluation_pb2, inference_pb2, rollout_pb2
from tests.fixtures.front_end_clients import Call
from tests.fixtures.lifecycle_clients import GrpcLifecycle, Labels
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.slow
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TIMEOUT_S = 60
# The table of server.api.grpc.errors without what only our own mistakes are answered with.
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (inference_pb2, adapter_pb2, rollout_pb2, evaluation_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
WORDS = ["", "lora", "prompt", "lora:1", "lora@stable", "prompt@canary", "nothing", "stable", "canary", "good", "key-1"]
WORDS += ["../x", "a" * 300, "\x00", "\u202e", "hf://owner/repo", "file:///etc", "adapter_config.json", "one two three"]
TEXTS = st.sampled_from(WORDS) | st.text(max_size=20)
_FILES = [*lora_files().values(), b"PK\x03\x04", b"", b"\x1f\x8b"]
_BYTES = st.sampled_from(_FILES) | st.binary(max_size=64)
_FLOATS = st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e300, float("inf"), float("nan")]) | st.floats(width=32)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _value(field: FieldDescriptor) -> st.SearchStrategy[object]:
    """Any value of a field that is not repeated."""
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        return st.sampled_from([0, 1, 2, low, high]) | st.integers(max(low, -9), 300)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return _FLOATS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(0, 9)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type)
    return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Any message of a kind; each field may be left out, the last of a oneof wins."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        if field.is_repeated:
            values = draw(st.lists(_value(field), max_size=3))
            getattr(message, field.name).extend(values)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(draw(_value(field)))
        else:
            setattr(message, field.name, draw(_value(field)))
    return message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("server"), {"catalog": {"allowed_sources": []}})
    try:
        asyncio.run(_fill(server))
        yield server
        asyncio.run(_still_serves(server))
    finally:
        server.kill()


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


async def _fill(server: ServerProcess) -> None:
    await server.start()
    async with GrpcLifecycle(server) as client:
        await client.push("lora", lora_files(), Labels(alias="stable", tags=["good"]))
        await client.push("prompt", prompt_files(), Labels(alias="canary"))


async def _still_serves(server: ServerProcess) -> None:
    assert server.is_running()
    async with GrpcLifecycle(server) as client:
        await client.push("afterwards", lora_files(5), Labels(alias="stable"))
        assert (await client.summarize(Call(adapters=["afterwards"]))).finish_reason == "stop"
    assert '"level": "ERROR"' not in server.log_tail(10_000)


def _status(channel: grpc.Channel, path: str, method: MethodDescriptor, sent: list[bytes]) -> grpc.StatusCode:
    """Call a method with these bytes and return how it ended; every answer must be one of its own kind."""
    answer = GetMessageClass(method.output_type).FromString
    kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    call = getattr(channel, kind)(path, request_serializer=bytes, response_deserializer=answer)
    argument = iter(sent) if method.client_streaming else sent[0]
    try:
        answers = call(argument, timeout=TIMEOUT_S)
        if method.server_streaming:
            assert all(isinstance(piece, Message) for piece in answers)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("path", METHODS)
def test_method_with_any_messages_ends_as_documented(channel: grpc.Channel, path: str) -> None:
    method = METHODS[path]
    count = st.integers(0, 4) if method.client_streaming else st.just(1)

    @FUZZ
    @given(data=st.data())
    def call(data: st.DataObject) -> None:
        sent = [data.draw(messages(method.input_type)).SerializeToString() for _ in range(data.draw(count))]
        assert _status(channel, path, method, sent) in DOCUMENTED

    call()


@pytest.mark.parametrize("path", METHODS)
def test_method_with_any_bytes_ends_as_documented(channel: grpc.Channel, path: str) -> None:
    method = METHODS[path]

    @FUZZ
    @given(data=st.data())
    def call(data: st.DataObject) -> None:
        sound = data.draw(messages(method.input_type)).SerializeToString()
        cut = sound[: data.draw(st.integers(0, len(sound)))] + data.draw(st.binary(max_size=8))
        sent = [cut, sound] if method.client_streaming and data.draw(st.booleans()) else [cut]
        assert _status(channel, path, method, sent) in DOCUMENTED

    call()


def test_bytes_that_are_no_message_are_refused_by_every_method(channel: grpc.Channel) -> None:
    for path, method in METHODS.items():
        assert _status(channel, path, method, [b"\xff" * 9]) == grpc.StatusCode.INVALID_ARGUMENT, path
