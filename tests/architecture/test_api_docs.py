"""The page of the interfaces has every route and every method, each with its scopes and an example, and no others."""

import re
from pathlib import Path

import pytest

from server.api.grpc.access import GRPC_RULES
from server.api.http.access import HTTP_RULES
from server.service.access import PUBLIC

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
HTTP_PART, GRPC_PART = PAGE.split("\n## gRPC\n")
ROUTES = {f"{method} {path}" for method, path in HTTP_RULES if not path.startswith(("/docs/", "/console/"))}
METHODS = {method.lstrip("/") for method in GRPC_RULES if "/medley." in method}


def test_page_has_exactly_the_http_routes() -> None:
    assert set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`?]*)`", HTTP_PART)) == ROUTES


def test_page_has_exactly_the_grpc_methods() -> None:
    named = set()
    for section in GRPC_PART.split("\n### ")[1:]:
        service = re.match(r"`(medley\.v1\.\w+)`", section)
        if service is not None:
            named |= {f"{service[1]}/{method}" for method in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)}
    assert named == METHODS


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_route_has_its_scopes(route: str) -> None:
    method, path = route.split(" ")
    rule = HTTP_RULES[method, path]
    line = next(line for line in HTTP_PART.splitlines() if f"`{route}`" in line)
    line = line[line.index(f"`{route}`") :]
    assert ("no key" in line) == (rule is PUBLIC)
    assert "the same" in line or all(f"`{scope}`" in line for scope in rule.scopes)
    assert ("all names" in line) == rule.every_name


@pytest.mark.parametrize("route", sorted(ROUTES - {"GET /healthz", "GET /docs", "GET /console"}))
def test_route_has_an_example(route: str) -> None:
    method, path = route.split(" ")
    place = re.sub(r"\\{\w+\\}", r"[\\w-]+", re.escape(path))
    calls = re.findall(rf"^    curl(.*?localhost:8000{place}(?:[?' ].*)?)$", HTTP_PART, re.MULTILINE)
    if method in {"PUT", "PATCH", "DELETE"}:
        calls = [call for call in calls if f"-X {method}" in call]
    assert calls


@pytest.mark.parametrize("method", sorted(METHODS))
def test_method_has_its_scope_and_an_example(method: str) -> None:
    service, name = method.split("/")
    section = next(part for part in GRPC_PART.split("\n### ") if part.startswith(f"`{service}`"))
    line = next(line for line in section.splitlines() if line.startswith(f"| `{name}`"))
    assert f"localhost:50051 {method}" in line
    where = line if "| scope |" in section else section
    assert all(f"`{scope}`" in where for scope in GRPC_RULES[f"/{method}"].scopes)
