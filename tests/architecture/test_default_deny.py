"""Nothing of either front end can be reached without a key but health and the files of the console, and nothing at all
that is in no table.

What each route and method needs is said here a second time, by rule and not by table: reading needs ``read``, changing
needs ``operate``, asking for text needs ``infer``.
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from unittest.mock import MagicMock

import grpc
import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from grpc import aio
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from adapters.registry_records import Change
from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.api.grpc import server as grpc_server
from server.api.grpc.access import GRPC_RULES
from server.api.grpc.config import GrpcConfig
from server.api.http.access import HTTP_RULES
from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from server.core.principal import Scope
from server.observability.spans import NO_TRACER
from server.service.access import PUBLIC, AccessService

HTTP_INFER = {
    *("/v1/summarize", "/v1/completions", "/v1/chat/completions"),
    *("/v1/references", "/v1/references/batch"),
}
HTTP_PUBLIC = {"/healthz", "/readyz", "/console", "/console/{path}"}
HTTP_INFER_OR_READ = {"/v1/models", "/v1/models/{model_id}", "/v1/keys/self"}
GRPC_INFER = ("/medley.v1.InferenceService/", "/medley.v1.EvaluationService/SubmitReferences")
GRPC_READ = re.compile(r"/medley\.v1\.\w+/(Get|List)\w+|/grpc\.reflection\..*")

Tokens = Mapping[Scope, str]


def granted(*needed: Scope) -> set[Scope]:
    """Which scopes let through what needs one of these."""
    includes = {Scope.OPERATE: {Scope.READ, Scope.OPERATE}, Scope.ADMIN: set(Scope)}
    return {scope for scope in Scope if includes.get(scope, {scope}) & set(needed)}


def http_scopes(method: str, path: str) -> set[Scope]:
    if path in HTTP_INFER:
        return granted(Scope.INFER)
    if path in HTTP_INFER_OR_READ:
        return granted(Scope.INFER, Scope.READ)
    return granted(Scope.READ if method == "GET" else Scope.OPERATE)


def grpc_scopes(method: str) -> set[Scope]:
    if method.startswith(GRPC_INFER):
        return granted(Scope.INFER)
    return granted(Scope.READ if GRPC_READ.fullmatch(method) else Scope.OPERATE)


def http_routes(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path of an application, those of other frameworks' parts included."""
    found: set[tuple[str, str]] = set()
    for route in iter_route_contexts(app.routes):
        mounted = isinstance(route.original_route, Mount)
        path = f"{route.path}/{{path}}" if mounted else route.path_format
        assert path is not None
        found |= {(method, path) for method in route.methods or {"GET"} if method != "HEAD"}
    return found


@pytest.fixture(scope="module")
def key_ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRing]:
    ring = KeyRing(f"sqlite:///{tmp_path_factory.mktemp('keys') / 'registry.db'}")
    yield ring
    ring.close()


@pytest.fixture(scope="module")
def tokens(key_ring: KeyRing) -> Tokens:
    return {scope: key_ring.create(scope, scopes={scope}, change=Change("test"))[0] for scope in Scope}


@pytest.fixture
def services(key_ring: KeyRing, tokens: Tokens) -> MagicMock:
    """Services that can do nothing; access is real."""
    stub = MagicMock()
    stub.access = AccessService(key_ring, Quotas(), open_without_keys=True)
    stub.metrics.registry = CollectorRegistry()
    stub.tracer = NO_TRACER
    return stub


@pytest.fixture
def app(services: MagicMock) -> FastAPI:
    return create_app(services, HttpConfig())


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def status(http: httpx.AsyncClient, method: str, template: str, token: str | None = None) -> int:
    path = re.sub(r"{\w+}", "1", template)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return (await http.request(method, path, headers=headers)).status_code


def test_http_table_has_every_route_and_no_other(app: FastAPI) -> None:
    routes = http_routes(app)
    documented = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert documented < routes
    assert ("GET", "/openapi.json") in routes
    assert ("GET", "/docs/assets/{path}") in routes
    assert set(HTTP_RULES) == routes
    # Routes of this kind are found last and in no list of routes.
    assert not app.router._low_priority_routes


def test_http_public_routes_are_health_and_the_consoles_files_only() -> None:
    assert {path for (_, path), rule in HTTP_RULES.items() if rule is PUBLIC} == HTTP_PUBLIC
    assert [key for key, rule in HTTP_RULES.items() if not rule.scopes and rule is not PUBLIC] == []


async def test_http_public_routes_answer_without_a_key(http: httpx.AsyncClient) -> None:
    for path in HTTP_PUBLIC:
        assert await status(http, "GET", path) not in {401, 403}


@pytest.mark.parametrize(("method", "path"), sorted(key for key, rule in HTTP_RULES.items() if rule is not PUBLIC))
async def test_http_route_asks_for_its_scope(http: httpx.AsyncClient, tokens: Tokens, method: str, path: str) -> None:
    assert await status(http, method, path) == 401
    assert await status(http, method, path, "mdl_" + "0" * 61) == 401
    let_through = http_scopes(method, path)
    for scope, token in tokens.items():
        answer = await status(http, method, path, token)
        assert answer not in {401, 403} if scope in let_through else answer == 403, (scope, answer)


async def test_http_paths_that_are_none_are_hidden_from_strangers(http: httpx.AsyncClient, tokens: Tokens) -> None:
    for method, path, known in [("GET", "/nothing", 404), ("DELETE", "/v1/summarize", 405), ("HEAD", "/v1/audit", 405)]:
        assert await status(http, method, path) == 401
        assert await status(http, method, path, tokens[Scope.INFER]) == known


async def test_http_route_in_no_table_is_closed_even_to_admins(
    app: FastAPI, http: httpx.AsyncClient, tokens: Tokens
) -> None:
    assert await status(http, "GET", "/v1/secret", tokens[Scope.ADMIN]) == 404
    calls: list[str] = []

    def answer(_request: Any) -> PlainTextResponse:
        calls.append("reached")
        return PlainTextResponse("secret")

    app.add_api_route("/v1/secret", lambda: calls.append("reached"), methods=["GET"])
    app.add_route("/plain", answer, methods=["GET"])
    app.mount("/mounted", Starlette(routes=[Route("/inside", answer)]))
    for path in ("/v1/secret", "/plain", "/mounted/inside"):
        assert await status(http, "GET", path) == 401
        assert await status(http, "GET", path, tokens[Scope.ADMIN]) == 403
    assert calls == []


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The methods a server that is made in this test was given, whatever they come from."""
    methods: set[str] = set()
    make = aio.server

    def recording(*args: Any, **kwargs: Any) -> aio.Server:
        server = make(*args, **kwargs)
        add_generic, add_registered = server.add_generic_rpc_handlers, server.add_registered_method_handlers

        def generic(handlers: Any) -> None:
            methods.update(method for handler in handlers for method in handler._method_handlers)
            add_generic(handlers)

        def named(service: str, handlers: Mapping[str, Any]) -> None:
            methods.update(f"/{service}/{method}" for method in handlers)
            add_registered(service, handlers)

        monkeypatch.setattr(server, "add_generic_rpc_handlers", generic)
        monkeypatch.setattr(server, "add_registered_method_handlers", named)
        return server

    monkeypatch.setattr(grpc_server.aio, "server", recording)
    return methods


@pytest.fixture
async def channel(services: MagicMock, registered: set[str]) -> AsyncIterator[aio.Channel]:
    server = grpc_server.create_server(services, GrpcConfig())
    nothing = grpc.unary_unary_rpc_method_handler(services.secret, bytes, bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("medley.v1.Secret", {"Tell": nothing}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def code(channel: aio.Channel, method: str, token: str | None = None) -> grpc.StatusCode:
    """Call a method of any kind with one empty message and return how it ended, or OK at its first answer."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=10)
    try:
        await call.read()
    except aio.AioRpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    call.cancel()
    return grpc.StatusCode.OK


async def test_grpc_table_has_every_method_and_no_other(channel: aio.Channel, registered: set[str]) -> None:
    assert set(GRPC_RULES) == registered - {"/medley.v1.Secret/Tell"}


def test_grpc_public_methods_are_health_only() -> None:
    public = {method for method, rule in GRPC_RULES.items() if rule is PUBLIC}
    assert public == {f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch")}
    assert [method for method, rule in GRPC_RULES.items() if not rule.scopes and rule is not PUBLIC] == []


async def test_grpc_public_methods_answer_without_a_key(channel: aio.Channel) -> None:
    for method in ("Check", "List", "Watch"):
        assert await code(channel, f"/grpc.health.v1.Health/{method}") is grpc.StatusCode.OK


@pytest.mark.parametrize("method", sorted(method for method, rule in GRPC_RULES.items() if rule is not PUBLIC))
async def test_grpc_method_asks_for_its_scope(channel: aio.Channel, tokens: Tokens, method: str) -> None:
    assert await code(channel, method) is grpc.StatusCode.UNAUTHENTICATED
    assert await code(channel, method, "mdl_" + "0" * 61) is grpc.StatusCode.UNAUTHENTICATED
    let_through = grpc_scopes(method)
    refusals = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}
    for scope, token in tokens.items():
        answer = await code(channel, method, token)
        if scope in let_through:
            assert answer not in refusals, scope
        else:
            assert answer is grpc.StatusCode.PERMISSION_DENIED, scope


async def test_grpc_method_in_no_table_is_closed_even_to_admins(
    channel: aio.Channel, services: MagicMock, tokens: Tokens
) -> None:
    method = "/medley.v1.Secret/Tell"
    assert await code(channel, method) is grpc.StatusCode.UNAUTHENTICATED
    assert await code(channel, method, tokens[Scope.ADMIN]) is grpc.StatusCode.PERMISSION_DENIED
    services.secret.assert_not_called()
