"""The routes that are called most, without what the framework puts around a route.

The framework describes them like all others. What it does for any route (finding it, dependencies, a model for the
answer, three stacks of what is to be closed) took as long as all else the server does for a whole answer but the text.
"""

import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.errors import invalid_body
from server.api.http.wire.fields import WireModel
from server.core.errors import CancelledError, InvalidArgumentError


class DirectRoute(APIRoute):
    """A route whose function takes ``request`` and ``body``, nothing else, and whose errors are ours.

    What the function returns is written as it is, unless it is a response: nothing checks it against its type once
    more. For ``APIRouter(route_class=...)``.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Find the body's model; the arguments are the framework's."""
        self._model: type[WireModel] = get_type_hints(endpoint)["body"]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers, for callers who came the framework's way."""
        return self.answer

    async def answer(self, request: Request) -> Response:
        """Return the answer to a request of this route.

        Raises:
            MedleyError: What its function raises, or if the body is not what it takes.
            AdapterError: What its function raises.
            HTTPException: If the body is too large.
        """
        told = _parsed(request.headers.get("content-type", ""), await body_of(request))
        try:
            body = self._model.model_validate(told)
        except ValidationError as error:
            raise invalid_body(error) from error
        answer = await self.endpoint(request, body)
        if isinstance(answer, Response):
            return answer
        return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


class ShortWay:
    """Takes requests of direct routes to them, and leaves all others to the framework.

    Stands inside the layer of access. What a route raises is answered by the gate.

    Args:
        app: The application behind.
        routes: Of any kind.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """Keep the direct ones, none of which may have a parameter in its path."""
        self._app = app
        direct = [route for route in routes if isinstance(route, DirectRoute)]
        self._routes = {(method, route.path): route for route in direct for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            MedleyError: What the route raises.
            AdapterError: What the route raises.
            HTTPException: What the route raises.
        """
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await route.answer(Request(scope, receive, send))
        await response(scope, receive, send)


async def body_of(request: Request) -> bytes:
    """Return a request's whole body.

    Raises:
        CancelledError: If the caller went away before its end.
        HTTPException: If it is too large.
    """
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise CancelledError("the caller went away") from error


def _parsed(content_type: str, data: bytes) -> object:
    kind = content_type.partition(";")[0].strip().lower()
    if not data or not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise InvalidArgumentError("the body must be a JSON object, sent with content-type application/json")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidArgumentError("the body is not valid JSON") from None
