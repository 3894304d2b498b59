"""A span for each gRPC call, under the caller's if its metadata name one. In place only where traces are on."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, cast

import grpc
from grpc import aio

from server.api.grpc.errors import Context
from server.observability.spans import Tracer, working_for

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[object, object]
_Answer = Callable[[object, Context], Awaitable[object]]

_OURS = "/medley.v1."
_TRACE_HEADERS = ("traceparent", "tracestate")
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
_SERVER_FAULTS = frozenset(
    code.value[0] for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)
)


# The stubs make these classes generic, the library does not.
class TraceInterceptor(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Must be before the interceptor of access, as what that refuses has a span, too, and its handlers are coroutines.

    Args:
        tracer: Keeps the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        """Keep the tracer."""
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler":
        """Return the call's handler with a span around it; health checks and reflection have none."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        headers = {key: str(value) for key, value in handler_call_details.invocation_metadata if key in _TRACE_HEADERS}
        parse, serialize = handler.request_deserializer, handler.response_serializer
        if handler.stream_stream is not None:
            answer = self._traced(handler.stream_stream, method, headers)
            return grpc.stream_stream_rpc_method_handler(answer, parse, serialize)
        if handler.stream_unary is not None:
            answer = self._traced(handler.stream_unary, method, headers)
            return grpc.stream_unary_rpc_method_handler(answer, parse, serialize)
        if handler.unary_stream is not None:
            answer = self._traced(handler.unary_stream, method, headers)
            return grpc.unary_stream_rpc_method_handler(answer, parse, serialize)
        return grpc.unary_unary_rpc_method_handler(self._traced(handler.unary_unary, method, headers), parse, serialize)

    def _traced(self, inner: object, method: str, headers: Mapping[str, str]) -> _Answer:
        answer = cast(_Answer, inner)
        name = method.removeprefix("/")

        async def on_call(request: object, context: Context) -> object:
            call = self._tracer.open(name, headers, {"rpc.system": "grpc", "rpc.method": name})
            status = _CANCELLED
            try:
                with working_for(call):
                    answered = await answer(request, context)
                    status = _status(context)
                    return answered
            except aio.AbortError:
                status = _status(context)
                raise
            finally:
                call.note({"rpc.grpc.status_code": status})
                if status in _SERVER_FAULTS:
                    call.failed(_NAMES[status])
                self._tracer.close(call)

        return on_call


def _status(context: Context) -> int:
    # The library gives back the number of what it was told by name, and nothing where it was told nothing.
    code: object = context.code()
    if isinstance(code, grpc.StatusCode):
        code = code.value[0]
    return code if isinstance(code, int) else 0
