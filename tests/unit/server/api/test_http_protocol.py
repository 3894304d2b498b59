"""What only HTTP has: bodies that do not parse, methods, headers, sizes, multipart, operations."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.api.http.app import create_app
from server.api.http.config import HttpConfig
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}
INFERENCE_PATHS = ("/v1/summarize", "/v1/completions", "/v1/chat/completions")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """The same services behind tight limits."""
    app = create_app(server.container.services, HttpConfig(max_body_bytes=100, max_upload_bytes=2000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://small") as client:
        yield client


def _error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    return error


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "not-json": b"{text: 1}",
    "cut-off": b'{"text": "hel',
    "a-list": b"[1]",
    "a-string": b'"hello"',
    "null": b"null",
    "no-utf8": b'{"text": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "huge-number": b'{"text": "x", "prompt": "x", "model": "fake", "seed": ' + b"9" * 5000 + b"}",
    "not-a-number": b'{"text": "x", "prompt": "x", "model": "fake", "messages": [], "temperature": NaN}',
    "infinite": b'{"text": "x", "prompt": "x", "model": "fake", "messages": [], "top_p": Infinity}',
    "nothing-given": b"{}",
    "wrong-types": b'{"text": 1, "prompt": {}, "model": "fake", "messages": "x"}',
    "text-is-null": b'{"text": null, "prompt": null, "model": "fake", "messages": null}',
    "unknown-field": b'{"text": "x", "prompt": "x", "model": "fake", "messages": [], "temprature": 1}',
    "text-number": b'{"text": "x", "prompt": "x", "model": "fake", "messages": [], "temperature": "1"}',
    "lone-surrogate": b'{"text": "\\ud800", "prompt": "\\ud800", "model": "fake", '
    b'"messages": [{"role": "user", "content": "\\ud800"}]}',
    "adapters-no-list": b'{"text": "x", "prompt": "x", "model": "fake", "messages": [], "adapters": "lora"}',
}


@pytest.mark.parametrize("path", INFERENCE_PATHS)
@pytest.mark.parametrize("case", BAD_BODIES)
async def test_bad_body_is_an_invalid_argument(client: httpx.AsyncClient, path: str, case: str) -> None:
    error = _error(await client.post(path, content=BAD_BODIES[case], headers=JSON), 400, "INVALID_ARGUMENT")
    assert error["type"] == "invalid_request_error"
    assert (await client.post("/v1/summarize", json={"text": "still here"})).json()["summary"] == "still here"


@pytest.mark.parametrize("field", ["temprature", "stream_"])
async def test_unknown_field_is_named(client: httpx.AsyncClient, field: str) -> None:
    error = _error(await client.post("/v1/summarize", json={"text": "x", field: 1}), 400, "INVALID_ARGUMENT")
    assert error["param"] == field


async def test_error_repeats_nothing_of_the_text(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/summarize", json={"text": ["very private"], "top_p": "secret"})
    _error(response, 400, "INVALID_ARGUMENT")
    assert "private" not in response.text
    assert "secret" not in response.text


async def test_null_means_left_out(client: httpx.AsyncClient) -> None:
    body = {"text": "abc", "temperature": None, "seed": None, "adapters": None, "request_id": None, "stop": None}
    assert (await client.post("/v1/summarize", json=body)).json()["summary"] == "abc"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_wrong_content_type_is_told_what_to_send(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/v1/summarize", content=b'{"text": "x"}', headers={"content-type": content_type})
    assert "application/json" in _error(response, 400, "INVALID_ARGUMENT")["message"]


async def test_unknown_route_is_not_found(client: httpx.AsyncClient) -> None:
    _error(await client.get("/v1/nothing"), 404, "NOT_FOUND")


async def test_wrong_method_says_what_is_allowed(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/summarize")
    _error(response, 405, "INVALID_ARGUMENT")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("model", ["", "+", "lora+", "a" * 500])
async def test_model_that_is_no_reference_is_refused(client: httpx.AsyncClient, model: str) -> None:
    _error(await client.post("/v1/completions", json={"model": model, "prompt": "x"}), 400, "INVALID_ARGUMENT")


async def test_top_logprobs_need_logprobs(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}
    response = await client.post("/v1/chat/completions", json=body)
    assert _error(response, 400, "INVALID_ARGUMENT")["param"] == "top_logprobs"


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]}]
)
async def test_message_we_cannot_read_is_refused(client: httpx.AsyncClient, message: object) -> None:
    response = await client.post("/v1/chat/completions", json={"model": "fake", "messages": [message]})
    assert _error(response, 400, "INVALID_ARGUMENT")["param"].startswith("messages.0")


class TestRequestIds:
    async def test_id_in_the_header_comes_back(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/summarize", json={"text": "x"}, headers={"x-request-id": "from-header"})
        assert response.headers["x-request-id"] == response.json()["request_id"] == "from-header"

    async def test_id_in_the_body_wins(self, client: httpx.AsyncClient) -> None:
        body = {"text": "x", "request_id": "from-body"}
        response = await client.post("/v1/summarize", json=body, headers={"x-request-id": "from-header"})
        assert response.headers["x-request-id"] == response.json()["request_id"] == "from-body"

    @pytest.mark.parametrize("request_id", ["", "two words", "x" * 129, "<script>"])
    async def test_bad_id_in_the_header_is_refused(self, client: httpx.AsyncClient, request_id: str) -> None:
        response = await client.get("/v1/models", headers={"x-request-id": request_id})
        assert _error(response, 400, "INVALID_ARGUMENT")["request_id"] != request_id

    async def test_every_answer_has_an_id(self, client: httpx.AsyncClient) -> None:
        ids = {(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/nothing")}
        assert len(ids) == 3


@pytest.mark.parametrize("deadline", ["0", "-5", "1.5", "soon", "9" * 12, "", "²"])
async def test_bad_deadline_is_refused(client: httpx.AsyncClient, deadline: str) -> None:
    headers = {"x-deadline-ms": deadline.encode()}
    response = await client.post("/v1/summarize", json={"text": "x"}, headers=headers)
    assert _error(response, 400, "INVALID_ARGUMENT")["param"] == "x-deadline-ms"


class TestSizes:
    async def test_body_over_its_limit_is_refused(self, small: httpx.AsyncClient) -> None:
        error = _error(await small.post("/v1/summarize", json={"text": "x" * 100}), 413, "RESOURCE_EXHAUSTED")
        assert "100 bytes" in error["message"]
        assert (await small.post("/v1/summarize", json={"text": "x"})).json()["summary"] == "x"

    async def test_endless_body_is_not_read_to_its_end(self, small: httpx.AsyncClient) -> None:
        num_sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal num_sent
            while num_sent < 1000:
                num_sent += 1
                yield b" " * 50

        response = await small.post("/v1/summarize", content=endless(), headers=JSON)
        _error(response, 413, "RESOURCE_EXHAUSTED")
        assert num_sent < 10

    async def test_body_announced_as_too_large_is_not_read_at_all(self, small: httpx.AsyncClient) -> None:
        async def unread() -> AsyncIterator[bytes]:
            raise AssertionError("read")
            yield b""

        headers = {**JSON, "content-length": "101"}
        _error(await small.post("/v1/summarize", content=unread(), headers=headers), 413, "RESOURCE_EXHAUSTED")

    async def test_upload_over_its_limit_is_refused(self, small: httpx.AsyncClient) -> None:
        parts = [("files", (name, data + b" " * 2000)) for name, data in lora_files().items()]
        _error(await small.post("/v1/adapters/big/versions", files=parts), 413, "RESOURCE_EXHAUSTED")

    async def test_upload_has_a_limit_of_its_own(self, small: httpx.AsyncClient) -> None:
        parts = [("files", item) for item in lora_files().items()]
        assert (await small.post("/v1/adapters/small-one/versions", files=parts)).status_code == 201

    async def test_huge_body_over_the_wire_leaves_the_server_well(self, client: httpx.AsyncClient) -> None:
        _error(await client.post("/v1/summarize", json={"text": "x" * 3_000_000}), 413, "RESOURCE_EXHAUSTED")
        assert (await client.get("/healthz")).status_code == 200


class TestUploads:
    async def test_alias_may_be_a_field_of_the_form(self, client: httpx.AsyncClient) -> None:
        parts = [("files", item) for item in lora_files(seed=4).items()]
        response = await client.post("/v1/adapters/formed/versions", files=parts, data={"alias": "canary"})
        assert response.status_code == 201
        assert (await client.get("/v1/adapters/formed")).json()["aliases"] == {"canary": 1}

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("application/json", b"{}"),
            ("multipart/form-data", b"x"),
            ("multipart/form-data; boundary=" + "b" * 500, b"x"),
            ("multipart/form-data; boundary=b", b"--other\r\n\r\n"),
            ("multipart/form-data; boundary=b", b""),
            ("multipart/form-data; boundary=b", b"--b\r\n\r\nnameless\r\n--b--\r\n"),
            ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="alias"\r\n\r\nx'),
            (
                "multipart/form-data; boundary=b",
                b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
            ),
            (
                "multipart/form-data; boundary=b",
                b'--b\r\nContent-Disposition: form-data; name="alias"\r\n\r\n' + b"x" * 99 + b"\r\n--b--\r\n",
            ),
        ],
    )
    async def test_bad_form_is_an_invalid_argument(
        self, client: httpx.AsyncClient, content_type: str, body: bytes
    ) -> None:
        response = await client.post(
            "/v1/adapters/bad-form/versions", content=body, headers={"content-type": content_type}
        )
        _error(response, 400, "INVALID_ARGUMENT")
        assert (await client.get("/v1/adapters/bad-form")).status_code == 404


class TestOperations:
    async def test_health_and_readiness_are_ok(self, client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "ok", "reason": ""})

    async def test_metrics_count_requests(self, client: httpx.AsyncClient) -> None:
        await client.post("/v1/summarize", json={"text": "x"})
        text = (await client.get("/metrics")).text
        count = re.search(r'^medley_requests_total\{adapters="base",code="OK"\} (\S+)$', text, re.MULTILINE)
        assert count is not None
        assert float(count[1]) >= 1

    async def test_docs_load_nothing_from_elsewhere(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        for link in links:
            assert link.startswith("/")
            assert (await client.get(link)).status_code == 200

    async def test_openapi_lists_every_route(self, client: httpx.AsyncClient) -> None:
        schema = (await client.get("/openapi.json")).json()
        assert {*INFERENCE_PATHS, "/v1/models", "/v1/adapters/{name}/versions", "/v1/references"} <= set(
            schema["paths"]
        )
        assert "SummarizeAnswer" in json.dumps(schema["paths"]["/v1/summarize"])


async def test_stream_of_events_is_marked_as_one(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/summarize", json={"text": "ab", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    assert response.text.endswith("data: [DONE]\n\n")


async def test_refused_stream_has_a_status_of_its_own(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/summarize", json={"text": "", "stream": True})
    _error(response, 400, "INVALID_ARGUMENT")
