"""The outermost layer of the HTTP front end: request ids in and out, bounded bodies, and no unknown exception.

Plain ASGI, because a wrapped response would hide the caller's disconnect from the streaming routes.
"""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.config import HttpConfig
from server.api.http.errors import body_too_large, error_response
from server.core.request import check_request_id, new_request_id

REQUEST_ID_HEADER = "x-request-id"
_UPLOAD_PATH = re.compile(r"/v1/adapters/[^/]+/versions")


def body_limit(path: str, config: HttpConfig) -> int:
    """Return how many bytes the body of a request to a path may have."""
    return config.max_upload_bytes if _UPLOAD_PATH.fullmatch(path) else config.max_body_bytes


class Gate:
    """Gives each request an id (``scope["state"]["request_id"]``) and a largest body.

    A route may replace the id by the one in its body; the answer's header follows.

    Args:
        app: The application behind the gate.
        config: Limits.
    """

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        """Keep the application and the limits."""
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; only HTTP requests are touched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = new_request_id()
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = state["request_id"]
            await send(message)

        try:
            state["request_id"] = check_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER, state["request_id"]))
            await self._app(scope, self._bounded(scope, receive), send_with_id)
        except Exception as error:
            if started:
                raise
            response = error_response(error, state["request_id"], self._config.retry_after_s)
            await response(scope, receive, send_with_id)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        max_body_bytes = body_limit(scope["path"], self._config)
        declared = Headers(scope=scope).get("content-length", "")
        announced_too_large = declared.isdecimal() and int(declared) > max_body_bytes
        num_received_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_received_bytes
            if announced_too_large:
                raise body_too_large(max_body_bytes)
            message = await receive()
            num_received_bytes += len(message.get("body", b""))
            if num_received_bytes > max_body_bytes:
                raise body_too_large(max_body_bytes)
            return message

        return receive_bounded
