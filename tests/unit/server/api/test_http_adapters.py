"""What only HTTP has about adapters: kinds of bodies, queries beside forms, numbers in paths, cards, vLLM's routes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from server.service.adapters import CatalogConfig
from tests.fixtures.change_clients import tar_of
from tests.fixtures.peft_files import Files, lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> AsyncIterator[RunningServer]:
    catalog = CatalogConfig(allowed_sources=(f"file://{sources}/",))
    async with running_server(tmp_path_factory.mktemp("server"), fake_engine(), catalog=catalog) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        yield client


def _error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    return error


def _folder(sources: Path, name: str, files: Files) -> str:
    folder = sources / name
    folder.mkdir()
    for file_name, data in files.items():
        (folder / file_name).write_bytes(data)
    return str(folder)


def _parts(files: Files) -> list[tuple[str, Any]]:
    return [("files", item) for item in files.items()]


class TestUploads:
    @pytest.mark.parametrize("kind", ["application/x-tar", "APPLICATION/ZIP; x=y", "application/gzip"])
    async def test_kind_of_an_archive_is_told_by_its_bytes(self, client: httpx.AsyncClient, kind: str) -> None:
        name = "by-bytes-" + kind.lower().partition(";")[0].partition("/")[2]
        url = f"/v1/adapters/{name}/versions?alias=stable&tags=a,%20b"
        response = await client.post(url, content=tar_of(lora_files()), headers={"content-type": kind})
        assert response.status_code == 201, response.text
        assert response.json()["tags"] == ["a", "b"]
        assert (await client.get(f"/v1/adapters/{name}")).json()["aliases"] == {"stable": 1}

    async def test_archive_may_be_a_part_of_a_form(self, client: httpx.AsyncClient) -> None:
        parts = {"archive": ("x.bin", tar_of(lora_files()))}
        fields = {"alias": "canary", "tags": "x,y"}
        response = await client.post("/v1/adapters/in-form/versions", files=parts, data=fields)
        assert (response.status_code, response.json()["tags"]) == (201, ["x", "y"])
        assert (await client.get("/v1/adapters/in-form")).json()["aliases"] == {"canary": 1}

    async def test_form_wins_over_the_query(self, client: httpx.AsyncClient) -> None:
        url = "/v1/adapters/both/versions?alias=query&tags=query"
        response = await client.post(url, files=_parts(lora_files()), data={"alias": "form"})
        assert response.json()["tags"] == ["query"]
        assert (await client.get("/v1/adapters/both")).json()["aliases"] == {"form": 1}

    @pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "multipart/mixed; boundary=b"])
    async def test_kind_that_is_not_taken_is_told_what_is(self, client: httpx.AsyncClient, kind: str) -> None:
        response = await client.post("/v1/adapters/kind/versions", content=b"x", headers={"content-type": kind})
        assert "application/zip" in _error(response, 415, "INVALID_ARGUMENT")["message"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            (b"", None),
            (b"[]", None),
            (b"{", None),
            (b"{}", "source"),
            (b'{"source": 1}', "source"),
            (b'{"source": "file:///x", "tags": "a"}', "tags"),
            (b'{"source": "file:///x", "tags": [1]}', "tags.0"),
            (b'{"source": "file:///x", "other": 1}', "other"),
            (b'{"source": "\\ud800"}', None),
            (b"\xff", None),
        ],
    )
    async def test_bad_source_body_is_an_invalid_argument(
        self, client: httpx.AsyncClient, body: bytes, param: str | None
    ) -> None:
        response = await client.post("/v1/adapters/bad-source/versions", content=body, headers=JSON)
        assert _error(response, 400, "INVALID_ARGUMENT")["param"] == param

    async def test_source_body_has_a_limit_far_below_an_uploads(self, client: httpx.AsyncClient) -> None:
        body = b'{"source": "' + b"x" * 100_000 + b'"}'
        _error(await client.post("/v1/adapters/long/versions", content=body, headers=JSON), 413, "RESOURCE_EXHAUSTED")

    @pytest.mark.parametrize(
        "part",
        [
            ("other", ("adapter_config.json", b"{}")),
            ("alias", ("adapter_config.json", b"{}")),
            ("other", (None, b"")),
            ("files", (None, b"{}")),
        ],
    )
    async def test_part_that_is_no_file_and_no_field_is_refused(
        self, client: httpx.AsyncClient, part: tuple[str, Any]
    ) -> None:
        response = await client.post("/v1/adapters/odd/versions", files=[part])
        _error(response, 400, "INVALID_ARGUMENT")
        assert (await client.get("/v1/adapters/odd")).status_code == 404

    @pytest.mark.parametrize(
        "part", [("files", ("adapter_config.json", b" ")), ("alias", (None, b"a")), ("tags", (None, b""))]
    )
    async def test_part_that_comes_twice_is_refused(self, client: httpx.AsyncClient, part: tuple[str, Any]) -> None:
        parts = [*_parts(lora_files()), ("alias", (None, b"a")), ("tags", (None, b"")), part]
        error = _error(await client.post("/v1/adapters/twice/versions", files=parts), 400, "INVALID_ARGUMENT")
        assert error["message"].endswith("twice")
        assert (await client.get("/v1/adapters/twice")).status_code == 404

    async def test_files_and_an_archive_together_are_refused(self, client: httpx.AsyncClient) -> None:
        parts = [*_parts(lora_files()), ("archive", ("a.tar", tar_of(lora_files())))]
        _error(await client.post("/v1/adapters/mixed/versions", files=parts), 400, "INVALID_ARGUMENT")
        assert (await client.get("/v1/adapters/mixed")).status_code == 404

    async def test_caller_who_goes_away_leaves_nothing(self, server: RunningServer) -> None:
        host, _, port = server.http.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/adapters/gone/versions HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
        writer.write(head + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000)
        await writer.drain()
        async with asyncio.timeout(5), httpx.AsyncClient(base_url=server.http) as client:
            while (await client.get("/v1/adapters/gone")).status_code == 404:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            writer.close()
            while (await client.get("/v1/adapters/gone")).status_code != 404:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @pytest.mark.parametrize("path", ["/v1/adapters/slow/versions", "/v1/load_lora_adapter"])
    async def test_caller_who_goes_away_while_a_source_is_fetched_ends_it(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def fetch_for_ever(*_: object, **__: object) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        monkeypatch.setattr(server.container.services.uploads, "from_source", fetch_for_ever)
        body = {"source": "hf://a/b"} if "versions" in path else {"lora_name": "slow", "lora_path": "hf://a/b"}
        async with httpx.AsyncClient(base_url=server.http) as client, asyncio.timeout(5):
            call = asyncio.create_task(client.post(path, json=body))
            await began.wait()
            assert not ended.is_set()
            call.cancel()
            await ended.wait()


class TestParameters:
    @pytest.mark.parametrize("version", ["0", "-1", "1.5", "x", "9" * 30, "%00"])
    async def test_bad_version_in_the_path_is_refused(self, client: httpx.AsyncClient, version: str) -> None:
        path = f"/v1/adapters/any/versions/{version}"
        for response in (
            await client.get(path),
            await client.delete(path),
            await client.patch(path, json={"tags": []}),
            await client.put("/v1/adapters/any/aliases/a", json={"version": version}),
        ):
            assert _error(response, 400, "INVALID_ARGUMENT")["param"] == "version"

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "/v1/adapters/a/versions/1", b'{"tags": "x"}'),
            ("PATCH", "/v1/adapters/a/versions/1", b'{"digest": "x"}'),
            ("PUT", "/v1/adapters/a/aliases/b", b"{}"),
            ("PUT", "/v1/adapters/a/aliases/b", b'{"version": true}'),
            ("POST", "/v1/adapters/a/rollback", b'{"alias": 1}'),
            ("POST", "/v1/load_lora_adapter", b'{"lora_name": "a"}'),
            ("POST", "/v1/unload_lora_adapter", b"{}"),
        ],
    )
    async def test_bad_body_is_an_invalid_argument(
        self, client: httpx.AsyncClient, method: str, path: str, body: bytes
    ) -> None:
        _error(await client.request(method, path, content=body, headers=JSON), 400, "INVALID_ARGUMENT")

    @pytest.mark.parametrize("query", ["force=maybe", "force="])
    async def test_bad_query_is_an_invalid_argument(self, client: httpx.AsyncClient, query: str) -> None:
        response = await client.delete(f"/v1/adapters/a/versions/1?{query}")
        assert _error(response, 400, "INVALID_ARGUMENT")["param"] == "force"

    async def test_rollback_without_a_body_means_stable(self, client: httpx.AsyncClient) -> None:
        for seed in (1, 2):
            parts = _parts(lora_files(seed))
            await client.post("/v1/adapters/bare/versions", files=parts, data={"alias": "stable"})
        response = await client.post("/v1/adapters/bare/rollback")
        assert (response.status_code, response.json()["aliases"]) == (200, {"stable": 1})

    async def test_card_is_no_page_of_ours(self, client: httpx.AsyncClient) -> None:
        files = lora_files(5) | {"card.md": b"<script>alert(1)</script>"}
        await client.post("/v1/adapters/scripted/versions", files=_parts(files))
        response = await client.get("/v1/adapters/scripted/versions/1/card")
        assert response.headers["content-type"] == "text/markdown; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"


class TestVllm:
    async def test_life_of_a_lora_with_vllms_words(self, client: httpx.AsyncClient, sources: Path) -> None:
        first, second = (_folder(sources, f"vllm-{seed}", lora_files(seed)) for seed in (21, 22))
        load = {"lora_name": "sql_adapter", "lora_path": first}
        response = await client.post("/v1/load_lora_adapter", json=load)
        assert response.text == "Success: LoRA adapter 'sql_adapter' added successfully."
        assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/plain")
        assert (await client.post("/v1/completions", json={"model": "sql_adapter", "prompt": "x"})).is_success

        again = _error(await client.post("/v1/load_lora_adapter", json=load), 400, "INVALID_ARGUMENT")
        assert again["message"].startswith("The lora adapter 'sql_adapter' has already been loaded.")
        in_place = {"lora_name": "sql_adapter", "lora_path": second, "load_inplace": True, "lora_int_id": 7}
        assert (await client.post("/v1/load_lora_adapter", json=in_place)).status_code == 200
        assert (await client.get("/v1/adapters/sql_adapter")).json()["aliases"] == {"stable": 2}

        response = await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql_adapter"})
        assert (response.status_code, response.text) == (
            200,
            "Success: LoRA adapter 'sql_adapter' removed successfully.",
        )
        states = [version["state"] for version in (await client.get("/v1/adapters/sql_adapter")).json()["versions"]]
        assert states == ["retired", "retired"]
        gone = _error(await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql_adapter"}), 404, "NOT_FOUND")
        assert gone["message"] == "The lora adapter 'sql_adapter' cannot be found."
        assert (await client.post("/v1/load_lora_adapter", json=load)).status_code == 200

    async def test_unknown_name_cannot_be_unloaded(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/unload_lora_adapter", json={"lora_name": "Never Seen"})
        assert _error(response, 404, "NOT_FOUND")["param"] == "lora_name"

    @pytest.mark.parametrize(
        ("path", "status"), [("/etc", 403), ("hf://owner/repo", 403), ("../x", 403), ("", 403), ("owner/repo", 403)]
    )
    async def test_path_that_is_not_allowed_is_refused(self, client: httpx.AsyncClient, path: str, status: int) -> None:
        response = await client.post("/v1/load_lora_adapter", json={"lora_name": "not-allowed", "lora_path": path})
        assert response.status_code == status, response.text
        assert (await client.get("/v1/adapters/not-allowed")).status_code == 404


async def test_upload_in_one_archive_is_bounded_too(server: RunningServer) -> None:
    app = create_app(server.container.services, HttpConfig(max_upload_bytes=1000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://small") as client:
        headers = {"content-type": "application/x-tar"}
        response = await client.post("/v1/adapters/big/versions", content=tar_of(lora_files()), headers=headers)
        _error(response, 413, "RESOURCE_EXHAUSTED")
        assert (await client.get("/v1/adapters/big")).status_code == 404
