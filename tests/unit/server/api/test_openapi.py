"""The OpenAPI document says what the routes do: every key, every parameter, every body, every status."""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.api.http.access import HTTP_RULES
from server.api.http.errors import ErrorBody
from server.service.access import PUBLIC
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_IN_THE_DOCUMENT = {
    *(("GET", "/docs"), ("GET", "/docs/assets/{path}"), ("GET", "/openapi.json")),
    *(("GET", "/console"), ("GET", "/console/{path}")),
}
ROUTES = sorted(set(HTTP_RULES) - NOT_IN_THE_DOCUMENT)
Document = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(client: httpx.AsyncClient) -> Document:
    document: Document = (await client.get("/openapi.json")).json()
    return document


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield str(node["$ref"])
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from _references(below)


async def test_document_has_every_route_and_no_other(document: Document) -> None:
    assert sorted((method.upper(), path) for path, methods in document["paths"].items() for method in methods) == ROUTES


async def test_every_reference_leads_somewhere(document: Document) -> None:
    for reference in _references(document):
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
async def test_route_tells_its_key_and_its_errors(document: Document, route: tuple[str, str]) -> None:
    operation = document["paths"][route[1]][route[0].lower()]
    rule = HTTP_RULES[route]
    assert operation["security"] == ([] if rule is PUBLIC else [{"bearer": [scope]} for scope in rule.scopes])
    expected = {"400", "503"} if rule is PUBLIC else {"400", "401", "403", "429", "500", "503"}
    assert expected <= set(operation["responses"])
    assert "422" not in operation["responses"]
    reference = f"#/components/schemas/{ErrorBody.__name__}"
    for status, response in operation["responses"].items():
        if int(status) >= 400 and rule is not PUBLIC:
            assert response["content"]["application/json"]["schema"]["$ref"] == reference


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
async def test_route_tells_its_parameters_and_its_body(document: Document, route: tuple[str, str]) -> None:
    method, path = route
    operation = document["paths"][path][method.lower()]
    parameters = {parameter.get("name"): parameter for parameter in operation["parameters"]}
    for name in re.findall(r"\{(\w+)\}", path):
        schema = parameters[name]["schema"]
        assert {"pattern", "maximum"} & set(schema) or name == "model_id"
    changes = "adapters/{name}" in path and method != "GET"
    assert ("Idempotency-Key" in parameters) == changes
    assert ("requestBody" in operation) == (method in {"POST", "PUT", "PATCH"})


BODIES: list[tuple[str, bytes]] = [
    ("application/json", b"{}"),
    ("application/json", b"[" * 1000),
    ("application/json", b'{"source": "ftp://x", "version": 1, "alias": "b", "tags": [], "lora_name": "a"}'),
    ("multipart/form-data; boundary=b", b"--b--"),
    ("application/zip", b"PK"),
    ("text/plain", b"x"),
    ("", b""),
]


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
async def test_whatever_is_sent_the_status_is_one_that_the_route_tells(
    client: httpx.AsyncClient, document: Document, route: tuple[str, str]
) -> None:
    method, path = route
    told = set(document["paths"][path][method.lower()]["responses"])
    fillings = ("a", "A%00b", "9" * 30, "%F0%9F%99%82") if "{" in path else ("",)
    queries = ("", "?limit=0&force=x&tag=%00&tags=,&alias=%F0")
    bodies = BODIES if method in {"POST", "PUT", "PATCH"} else BODIES[-1:]
    headers = ({}, {"idempotency-key": "k" * 200}, {"x-request-id": "?"}, {"x-deadline-ms": "x"})
    sent = [
        *itertools.product(fillings, queries[:1], bodies, headers[:1]),
        *itertools.product(fillings[:1], queries[1:], bodies, headers[:1]),
        *itertools.product(fillings[:1], queries[:1], bodies, headers[1:]),
    ]
    for filling, query, (kind, body), more in sent:
        place = re.sub(r"\{\w+\}", filling, path) + query
        response = await client.request(method, place, content=body, headers={**more, "content-type": kind})
        assert str(response.status_code) in told, (place, kind, more, response.text)
        assert response.status_code < 500, (place, kind, more, response.text)
