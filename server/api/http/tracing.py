"""A span for each HTTP call, under the caller's if its headers name one. In place only where traces are on.

Names a call by its route's template, never by its path or query, which are the caller's words.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.spans import Tracer, Value, working_for

_NO_ROUTE = "(no route)"
# Asked every few seconds by machines; their traces would drown the others.
_NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
_SERVER_FAULT = 500


class TraceLayer:
    """The outermost layer: what is refused further in has a span, too.

    Args:
        app: The application behind.
        tracer: Keeps the spans.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        """Keep the parts."""
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in _NOT_TRACED:
            await self._app(scope, receive, send)
            return
        state, status = scope.setdefault("state", {}), 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"]
        call = self._tracer.open(method, Headers(scope=scope), {"http.request.method": method})
        try:
            with working_for(call):
                await self._app(scope, receive, send_and_see)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            call.name(f"{method} {route}")
            known: dict[str, Value] = {"http.route": route, "medley.request_id": state.get("request_id", "")}
            # Without one the answer never began: the caller went away first.
            call.note(known | {"http.response.status_code": status} if status else known)
            if status >= _SERVER_FAULT:
                call.failed(str(status))
            self._tracer.close(call)
