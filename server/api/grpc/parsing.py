"""Bytes that are no message end their call with INVALID_ARGUMENT; the library alone would answer UNKNOWN."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from server.api.grpc.errors import Context, answering
from server.core.errors import InvalidArgumentError

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[object, object]
_OnOne = Callable[[object, Context], Awaitable[object]]
_OnMany = Callable[[AsyncIterator[object], Context], Awaitable[object]]


# The stubs make these classes generic, the library does not.
class ParsingInterceptor(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Parses requests inside the call, where a failure can be answered. Reflection's own stream is left alone."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler":
        """Return the call's handler with the parsing moved into it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.stream_stream is not None:
            return handler
        assert handler.request_deserializer is not None
        parse = _parser(handler.request_deserializer)
        serialize = handler.response_serializer
        if handler.stream_unary is not None:
            many = _on_many(cast(_OnMany, handler.stream_unary), parse)
            return grpc.stream_unary_rpc_method_handler(many, None, serialize)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_on_one(handler.unary_stream, parse), None, serialize)
        return grpc.unary_unary_rpc_method_handler(_on_one(handler.unary_unary, parse), None, serialize)


def _parser(deserializer: Callable[[bytes], object]) -> Callable[[object], object]:
    def parse(data: object) -> object:
        assert isinstance(data, bytes)
        try:
            return deserializer(data)
        except DecodeError as error:
            raise InvalidArgumentError("the request is not a well-formed message of this method") from error

    return parse


def _on_one(answer: object, parse: Callable[[object], object]) -> _OnOne:
    async def on_one(data: object, context: Context) -> object:
        async with answering(context):
            message = parse(data)
        return await cast(_OnOne, answer)(message, context)

    return on_one


def _on_many(answer: _OnMany, parse: Callable[[object], object]) -> _OnMany:
    async def on_many(data: AsyncIterator[object], context: Context) -> object:
        return await answer((parse(each) async for each in data), context)

    return on_many
