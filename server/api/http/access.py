"""Who may call which route: one table, and the layer that asks it before any route is reached.

What is not in the table is closed. Stands inside the gate, which gives ids and answers errors; plain ASGI, because a
wrapped response would hide the caller's disconnect from the streaming routes.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import fastapi.routing
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Mount, compile_path
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from server.core.errors import PermissionDeniedError
from server.core.principal import Scope
from server.service.access import PUBLIC, AccessService, Rule, bearer_token, closed

_INFER = Rule((Scope.INFER,), metered=True)
_REFERENCES = Rule((Scope.INFER,))
_MODELS = Rule((Scope.INFER, Scope.READ))
_ANY = Rule((Scope.INFER, Scope.READ))
_READ = Rule((Scope.READ,))
_READ_ALL = Rule((Scope.READ,), every_name=True)
_WRITE = Rule((Scope.OPERATE,))
_UPLOAD = Rule((Scope.OPERATE,), metered=True)

_ADAPTER = "/v1/adapters/{name}"
_VERSION = _ADAPTER + "/versions/{version}"
_ROLLOUT = _ADAPTER + "/rollouts/{rollout_id}"
_ALIAS = _ADAPTER + "/aliases/{alias}"

HTTP_RULES: Mapping[tuple[str, str], Rule] = MappingProxyType(
    {
        ("GET", "/healthz"): PUBLIC,
        ("GET", "/readyz"): PUBLIC,
        ("GET", "/console"): PUBLIC,
        ("GET", "/console/{path}"): PUBLIC,
        ("GET", "/v1/keys/self"): _ANY,
        ("GET", "/v1/status"): _READ_ALL,
        ("POST", "/v1/summarize"): _INFER,
        ("POST", "/v1/completions"): _INFER,
        ("POST", "/v1/chat/completions"): _INFER,
        ("POST", "/v1/references"): _REFERENCES,
        ("POST", "/v1/references/batch"): _REFERENCES,
        ("GET", "/v1/models"): _MODELS,
        ("GET", "/v1/models/{model_id}"): _MODELS,
        ("GET", "/v1/adapters"): _READ,
        ("GET", _ADAPTER): _READ,
        ("GET", _VERSION): _READ,
        ("GET", f"{_VERSION}/card"): _READ,
        ("GET", f"{_ADAPTER}/audit"): _READ,
        ("GET", "/v1/audit"): _READ_ALL,
        ("GET", "/v1/evaluations"): _READ,
        ("GET", "/v1/reference-sets"): _READ,
        ("PUT", "/v1/reference-sets/{name}"): _WRITE,
        ("DELETE", "/v1/reference-sets/{name}"): _WRITE,
        ("GET", "/metrics"): _READ_ALL,
        ("GET", "/docs"): _READ,
        ("GET", "/docs/assets/{path}"): _READ,
        ("GET", "/openapi.json"): _READ,
        ("POST", f"{_ADAPTER}/versions"): _UPLOAD,
        ("PATCH", _VERSION): _WRITE,
        ("DELETE", _VERSION): _WRITE,
        ("PUT", _ALIAS): _WRITE,
        ("DELETE", _ALIAS): _WRITE,
        ("POST", f"{_ADAPTER}/rollback"): _WRITE,
        ("POST", f"{_ADAPTER}/rollouts"): _WRITE,
        ("GET", f"{_ADAPTER}/rollouts"): _READ,
        ("GET", _ROLLOUT): _READ,
        ("POST", f"{_ROLLOUT}/promote"): _WRITE,
        ("POST", f"{_ROLLOUT}/rollback"): _WRITE,
        ("POST", "/v1/load_lora_adapter"): _UPLOAD,
        ("POST", "/v1/unload_lora_adapter"): _WRITE,
    }
)

# FastAPI before 0.137, which vLLM holds to, keeps all routes in one list; later ones keep those of a router together.
_each_route: Callable[[Sequence[BaseRoute]], Iterable[Any]] = getattr(fastapi.routing, "iter_route_contexts", iter)

_Route = tuple[re.Pattern[str], frozenset[str] | None, str]


class AccessLayer:
    """Lets callers through to the routes they may call, with ``scope["state"]["principal"]``.

    Args:
        app: The application behind.
        access: Who calls, and how much it may.
    """

    def __init__(self, app: ASGIApp, access: AccessService) -> None:
        """Keep the parts; the routes are looked at when the first request comes."""
        self._app = app
        self._access = access
        self._routes: tuple[_Route, ...] = ()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            MedleyError: If the caller is refused.
        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise closed()
        if not self._routes:
            self._routes = tuple(_routes(scope["app"]))
        route = _find(self._routes, scope)
        if route is not None and HTTP_RULES.get(route) is PUBLIC:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        principal = self._access.authenticate(bearer_token(headers.get("authorization")), origin(scope))
        if principal.is_anonymous and _is_from_elsewhere(headers):
            raise PermissionDeniedError("a page of another site may not call a server without API keys")
        scope["state"]["principal"] = principal
        if route is None:
            # A route that was added since must not slip through as one that does not exist.
            self._routes = tuple(_routes(scope["app"]))
            route = _find(self._routes, scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        rule = HTTP_RULES.get(route)
        if rule is None:
            raise closed()
        with self._access.entered(rule, principal):
            await self._app(scope, receive, send)


def origin(scope: AsgiScope) -> str:
    """Return the address of the connection's other end; what headers say of it is not believed."""
    client = scope.get("client")
    return client[0] if client else ""


def _is_from_elsewhere(headers: Headers) -> bool:
    """Return whether a browser sends this for a page that did not come from here.

    Keys stop such pages by themselves; without keys any page an operator looks at could change adapters, directly or
    by a name of its own that it has point at this machine. So the page must come from the address that is called, and
    that address must be one no stranger's name stands for: an IP address or ``localhost``.
    """
    page = headers.get("origin")
    if page is None:
        return False
    address = urlsplit(page)
    if address.netloc != headers.get("host"):
        return True
    return address.hostname != "localhost" and not _is_ip_address(address.hostname or "")


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _find(routes: tuple[_Route, ...], scope: AsgiScope) -> tuple[str, str] | None:
    """Return the method and the template of the route a request will reach, or None if there is none."""
    path, method = scope["path"], scope["method"]
    for pattern, methods, template in routes:
        if (methods is None or method in methods) and pattern.match(path):
            return "GET" if method == "HEAD" else method, template
    return None


def _routes(app: FastAPI) -> Iterator[_Route]:
    """List an application's routes in the order in which it looks at them."""
    for route in _each_route(app.routes):
        path, methods = route.path or "", getattr(route, "methods", None)
        if isinstance(getattr(route, "original_route", route), Mount):
            path = path.rstrip("/") + "/{path:path}"
        pattern, template, _ = compile_path(path)
        yield pattern, None if methods is None else frozenset(methods), template
