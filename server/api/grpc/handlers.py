"""A method's handler with something around its answer, whichever side of the call streams. Knows no methods."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc

from server.api.grpc.errors import Context

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[object, object]
Answer = Callable[[object, Context], Awaitable[object]]


def around(handler: "Handler", wrap: Callable[[object], Answer]) -> "Handler":
    """Return a handler that reads and writes the same messages.

    Args:
        handler: As the library gives it.
        wrap: From the handler's own function, a coroutine's or a generator's, to what takes its place.
    """
    parse, serialize = handler.request_deserializer, handler.response_serializer
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream), parse, serialize)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary), parse, serialize)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream), parse, serialize)
    return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary), parse, serialize)
