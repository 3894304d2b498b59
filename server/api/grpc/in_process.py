"""Answers gRPC calls that somebody else took off the wire: same interceptors, same servicers, no port.

For a front end that is not ours, as a proxy that spreads calls over servers. It hands on a method's name, the
messages' bytes and the metadata, and gets the answers' bytes and how the call ended.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

import grpc
from grpc import aio

from server.api.grpc.access import AccessInterceptor
from server.api.grpc.config import GrpcConfig
from server.api.grpc.parsing import ParsingInterceptor
from server.api.grpc.services import SERVICES, add_services
from server.api.grpc.tracing import TraceInterceptor
from server.service.door import Services

if TYPE_CHECKING:
    from server.api.grpc.handlers import Handler
Metadata = Sequence[tuple[str, str | bytes]]
ADD_SERVICERS = (
    "medley.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server",
    "medley.v1.adapter_pb2_grpc.add_AdapterServiceServicer_to_server",
    "medley.v1.rollout_pb2_grpc.add_RolloutServiceServicer_to_server",
    "medley.v1.evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server",
)
"""Where a proxy finds what tells it of our methods; each takes a servicer and a server."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of ours.

    Attributes:
        path: As calls name it, ``/medley.v1.InferenceService/Summarize``.
        takes_stream: Whether the caller sends many messages.
        gives_stream: Whether the answer is many messages.
    """

    path: str
    takes_stream: bool
    gives_stream: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: Method(
            f"/{service.full_name}/{method.name}", bool(method.client_streaming), bool(method.server_streaming)
        )
        for service in SERVICES
        for method in service.methods
    }
)
"""Every method by its short name, which no two of our services share."""


class Ended(NamedTuple):
    """How a call ended: the status' number, its words, and the trailers."""

    code: int
    details: str
    trailers: tuple[tuple[str, str], ...]


class InProcessServer:
    """The services without a port; every call runs on the caller's event loop.

    Args:
        services: What is called.
        config: As for the server with a port.
    """

    def __init__(self, services: Services, config: GrpcConfig) -> None:
        """Gather the methods' handlers."""
        traced = (TraceInterceptor(services.tracer),) if services.tracer.is_on else ()
        self._interceptors = (*traced, AccessInterceptor(services.access), ParsingInterceptor())
        gathered = _Gathered()
        add_services(cast(aio.Server, gathered), services, config)
        self._handlers = gathered.handlers

    async def call(
        self, name: str, messages: AsyncIterator[bytes], metadata: Metadata, peer: str, send: Callable[[bytes], None]
    ) -> Ended:
        """Answer a call and return how it ended; cancel it when the caller goes away.

        Args:
            name: A key of :data:`METHODS`.
            messages: What the caller sends; one message unless the method takes a stream.
            metadata: As the caller sent it.
            peer: Who calls, as gRPC names peers.
            send: Takes each message of the answer, in order.
        """
        context = _Call(metadata, peer, send)
        handler = await self._handler(METHODS[name].path, metadata)
        context.serialize = handler.response_serializer
        answer = handler.stream_unary or handler.unary_stream or handler.unary_unary
        request: object = messages if METHODS[name].takes_stream else await anext(messages)
        with suppress(aio.AbortError):
            given = await cast(Callable[[object, object], Awaitable[object]], answer)(request, context)
            if not METHODS[name].gives_stream:
                await context.write(given)
        return context.ended

    async def _handler(self, path: str, metadata: Metadata) -> "Handler":
        async def found(details: grpc.HandlerCallDetails) -> "Handler":
            return self._handlers[details.method]

        continuation: _Continuation = found
        for interceptor in reversed(self._interceptors):
            continuation = _through(interceptor, continuation)
        return await continuation(cast(grpc.HandlerCallDetails, _Details(path, metadata)))


_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["Handler"]]


# The stubs make these classes generic, the library does not.
def _through(interceptor: aio.ServerInterceptor, continuation: _Continuation) -> _Continuation:  # type: ignore[type-arg]
    async def intercepted(details: grpc.HandlerCallDetails) -> "Handler":
        return cast("Handler", await interceptor.intercept_service(continuation, details))

    return intercepted


class _Details(NamedTuple):
    method: str
    invocation_metadata: Metadata


class _Gathered:
    """Takes handlers as a server does, and keeps them."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the same come one by one."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, "Handler"]) -> None:
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class _Call:
    """As much of a servicer's context as ours use."""

    def __init__(self, metadata: Metadata, peer: str, send: Callable[[bytes], None]) -> None:
        self._metadata = metadata
        self._peer = peer
        self._send = send
        self.serialize: Callable[[object], bytes] | None = None
        self.ended = Ended(grpc.StatusCode.OK.value[0], "", ())

    async def abort(self, code: grpc.StatusCode, details: str, trailers: Sequence[tuple[str, str]] = ()) -> NoReturn:
        self.ended = Ended(code.value[0], details, tuple(trailers))
        raise aio.AbortError

    async def write(self, message: object) -> None:
        assert self.serialize is not None
        self._send(self.serialize(message))
        # Else a stream that is always ready would let nobody else have the event loop.
        await asyncio.sleep(0)

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> None:
        # Whoever took the call off the wire watches its deadline, and cancels it here.
        return None

    def code(self) -> int:
        return self.ended.code
