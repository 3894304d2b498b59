"""A span for each gRPC call, under the caller's if its metadata name one. In place only where traces are on."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, cast

import grpc
from grpc import aio

from server.api.grpc.errors import Context
from server.api.grpc.handlers import Answer, around
from server.observability.spans import Tracer, working_for

if TYPE_CHECKING:
    from server.api.grpc.handlers import Handler

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
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        """Return the call's handler with a span around it; health checks and reflection have none."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        headers = {key: str(value) for key, value in handler_call_details.invocation_metadata if key in _TRACE_HEADERS}
        return around(handler, lambda answer: self._traced(answer, method, headers))

    def _traced(self, inner: object, method: str, headers: Mapping[str, str]) -> Answer:
        answer = cast(Answer, inner)
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
