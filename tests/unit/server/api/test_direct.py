"""Direct routes: the short way to them answers as the framework's does, and only them."""

import json
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import Field
from starlette.datastructures import Headers
from starlette.responses import Response

from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from server.api.http.direct import DirectRoute, ShortWay
from server.api.http.errors import install_error_handlers
from server.api.http.wire.fields import WireModel
from server.core.errors import CancelledError, InvalidArgumentError, MedleyError, NotFoundError
from tests.fixtures.running_server import RunningServer

JSON = "application/json"


class Body(WireModel):
    """What the route takes."""

    word: str
    body: int = 0
    times: int = Field(1, ge=1)


def router() -> APIRouter:
    made = APIRouter(route_class=DirectRoute)

    @made.post("/say")
    async def say(request: Request, body: Body) -> dict[str, object]:
        if body.word == "missing":
            raise NotFoundError("no such word")
        return {"said": body.word * body.times, "share": float("inf"), "path": request.url.path}

    return made


async def call(
    app: Any,
    content: bytes,
    *,
    path: str = "/say",
    method: str = "POST",
    content_type: str = JSON,
    is_gone: bool = False,
) -> tuple[int, Headers, bytes]:
    messages: list[dict[str, Any]] = []
    received = {"type": "http.disconnect"} if is_gone else {"type": "http.request", "body": content}

    async def receive() -> dict[str, Any]:
        return received

    async def send(message: Any) -> None:
        messages.append(message)

    headers = [(b"content-type", content_type.encode())] if content_type else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "state": {}}
    scope["state"] = {"request_id": "r"}
    await app(scope, receive, send)
    return messages[0]["status"], Headers(raw=messages[0]["headers"]), b"".join(m.get("body", b"") for m in messages)


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await Response(b"elsewhere", 404)(scope, receive, send)


def short_way() -> ShortWay:
    return ShortWay(elsewhere, router().routes)


def framework() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app, 1)
    app.include_router(router())
    return app


async def test_answer_of_the_short_way_is_the_frameworks() -> None:
    content = json.dumps({"word": "häh", "times": 2}).encode()
    short, long = await call(short_way(), content), await call(framework(), content)
    assert (short[0], dict(short[1]), short[2]) == (long[0], dict(long[1]), long[2])
    assert json.loads(short[2]) == {"said": "hähhäh", "share": None, "path": "/say"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/say"), ("POST", "/say/"), ("POST", "/other")])
async def test_short_way_leaves_all_else_to_the_framework(method: str, path: str) -> None:
    assert (await call(short_way(), b"{}", path=path, method=method))[2] == b"elsewhere"


@pytest.mark.parametrize(
    ("content", "content_type", "param"),
    [
        (b"", JSON, None),
        (b"[]", JSON, None),
        (b"{", JSON, None),
        (b'{"word": "\xff"}', JSON, None),
        (b'{"word": "x"}', "text/plain", None),
        (b'{"word": "x"}', "", None),
        (b'{"word": 1}', JSON, "word"),
        (b'{"word": "x", "body": "y"}', JSON, "body"),
        (b'{"word": "x", "times": 0}', JSON, "times"),
        (b'{"word": "x", "query": 0}', JSON, "query"),
    ],
)
async def test_body_that_does_not_fit_is_refused_on_both_ways(
    content: bytes, content_type: str, param: str | None
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await call(short_way(), content, content_type=content_type)
    assert refused.value.param == param
    status, _, told = await call(framework(), content, content_type=content_type)
    assert (status, json.loads(told)["error"]["message"]) == (400, refused.value.message)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
async def test_body_may_be_any_kind_of_json(content_type: str) -> None:
    assert (await call(short_way(), b'{"word": "x"}', content_type=content_type))[0] == 200


async def test_error_of_the_route_is_raised_for_the_gate() -> None:
    with pytest.raises(MedleyError, match="no such word"):
        await call(short_way(), b'{"word": "missing"}')


async def test_caller_who_goes_away_within_the_body_is_no_fault_of_ours() -> None:
    with pytest.raises(CancelledError):
        await call(short_way(), b"", is_gone=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_short_way_leads_to_the_routes_that_are_called_most(server: RunningServer) -> None:
    layers = create_app(server.container.services, HttpConfig()).user_middleware
    names = [layer.cls.__name__ for layer in layers]  # type: ignore[attr-defined]
    assert names == ["Gate", "AccessLayer", "ShortWay"]
    paths = [route.path for route in layers[-1].kwargs["routes"] if isinstance(route, DirectRoute)]
    assert paths == ["/v1/summarize", "/v1/completions", "/v1/chat/completions", "/v1/references"]
