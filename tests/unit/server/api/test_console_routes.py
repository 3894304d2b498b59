"""What the files of the console are served with, and that nothing else can be asked for."""

import dataclasses
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from server.service.access import AccessService
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONSOLE = Path(__file__).parents[4] / "server" / "api" / "http" / "console"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        yield client


@pytest.mark.parametrize("path", ["/console", "/console/"])
async def test_page_forbids_itself_everything_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[what] for what in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["img-src"] == "'self' data:"
    assert policy["frame-ancestors"] == "'none'"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("main.js", "text/javascript; charset=utf-8"),
        ("pages/live.js", "text/javascript; charset=utf-8"),
        ("vendor/preact.js", "text/javascript; charset=utf-8"),
        ("console.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
async def test_file_has_its_type_and_is_not_guessed_at(client: httpx.AsyncClient, path: str, kind: str) -> None:
    answer = await client.get(f"/console/{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" in answer.headers
    assert answer.content == (CONSOLE / ("" if path.startswith("vendor/") else "page") / path).read_bytes()


async def test_file_that_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/console/main.js")
    again = await client.get("/console/main.js", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = await client.get("/console/main.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(("accepted", "is_zipped"), [("gzip, br", True), ("identity", False), ("gzip;q=0", False)])
async def test_file_is_compressed_for_those_who_take_it(
    client: httpx.AsyncClient, accepted: str, is_zipped: bool
) -> None:
    async with client.stream("GET", "/console/main.js", headers={"accept-encoding": accepted}) as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert answer.headers.get("content-encoding") == ("gzip" if is_zipped else None)
    assert answer.headers["vary"] == "accept-encoding"
    assert (gzip.decompress(raw) if is_zipped else raw) == (CONSOLE / "page" / "main.js").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        *("/console/index.html", "/console/nothing.js", "/console/files.py", "/console/vendor/package.json"),
        *("/console/../routes.py", "/console/%2e%2e/routes.py", "/console/..%2froutes.py", "/console//etc/passwd"),
        *("/console/vendor/../../routes.py", "/console/vendor%5c..%5croutes.py", "/console/main.js%00.css"),
    ],
)
async def test_anything_else_is_not_there(client: httpx.AsyncClient, path: str) -> None:
    # As it is written: the client would take the dots out.
    request = client.build_request("GET", "/")
    request.url = httpx.URL(client.base_url).copy_with(raw_path=path.encode())
    answer = await client.send(request)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "NOT_FOUND"


async def test_page_knows_whether_a_key_is_asked_for(server: RunningServer, tmp_path: Path) -> None:
    ring = KeyRing(f"sqlite:///{tmp_path / 'registry.db'}")
    try:
        for is_open, word in ((True, "none"), (False, "required")):
            services = server.container.services
            access = AccessService(ring, Quotas(), open_without_keys=is_open)
            app = create_app(dataclasses.replace(services, access=access), HttpConfig())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                assert f'data-keys="{word}"' in (await client.get("/console")).text
    finally:
        ring.close()
