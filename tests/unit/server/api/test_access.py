"""Keys, quotas and origins over both wires of one server; which route needs what is in tests/architecture."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc import aio

from adapters.registry_records import Change
from medley.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc
from server.access.keys import ApiKey, KeyRing
from server.api.grpc.access import origin as grpc_origin
from server.core.principal import Scope
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "x" * 100
Make = Callable[..., tuple[str, ApiKey]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with closing(KeyRing(f"sqlite:///{folder / 'registry.db'}")) as ring:
        ring.create("the first", scopes={Scope.ADMIN}, change=Change("test"))
    async with running_server(folder, fake_engine(step_time_s=0.005)) as running:
        yield running


@pytest.fixture
def ring(server: RunningServer) -> KeyRing:
    ring = server.container._key_ring
    assert ring is not None
    return ring


@pytest.fixture
def make(ring: KeyRing) -> Make:
    def make_key(*scopes: Scope, **fields: Any) -> tuple[str, ApiKey]:
        return ring.create("test", scopes=scopes or {Scope.INFER}, change=Change("test"), **fields)

    return make_key


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=20) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(server: RunningServer) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(server.grpc) as channel:
        yield channel


async def summarize(http: httpx.AsyncClient, token: str, text: str = "hi", **headers: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} | headers
    return await http.post("/v1/summarize", json={"text": text}, headers=headers)


async def rpc_summarize(channel: aio.Channel, token: str, text: str = "hi") -> Any:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    request = inference_pb2.SummarizeRequest(text=text)
    return await stub.Summarize(request, metadata=(("authorization", f"Bearer {token}"),))


async def rpc_refused(call: Any) -> tuple[grpc.StatusCode, dict[str, str]]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), {key: str(value) for key, value in caught.value.trailing_metadata() or ()}


async def running(server: RunningServer, num_running: int) -> None:
    async with asyncio.timeout(5):
        while server.stats().num_running != num_running:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_call_with_a_key_is_answered_on_both_wires(
    http: httpx.AsyncClient, channel: aio.Channel, make: Make
) -> None:
    token, _ = make()
    assert (await summarize(http, token)).json()["summary"] == "hi"
    assert (await rpc_summarize(channel, token)).summary == "hi"


@pytest.mark.parametrize("header", ["{}", "Basic {}", "Bearer", "Token {}", "Bearer x{}", "bearer{}", "Bearer {} x"])
async def test_token_not_sent_as_a_bearer_is_refused(http: httpx.AsyncClient, make: Make, header: str) -> None:
    token, _ = make()
    answer = await http.get("/v1/models", headers={"authorization": header.format(token)})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "UNAUTHENTICATED"
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


async def test_word_bearer_may_be_in_any_case(http: httpx.AsyncClient, make: Make) -> None:
    token, _ = make()
    assert (await http.get("/v1/models", headers={"authorization": f"bearer {token}"})).status_code == 200


async def test_token_in_bytes_that_are_no_ascii_is_refused(http: httpx.AsyncClient) -> None:
    header = b"Bearer mdl_" + b"0" * 12 + b"_" + b"\xe9" * 48
    assert (await http.get("/v1/models", headers={"authorization": header})).status_code == 401


async def test_stranger_is_refused_before_the_body_is_read(server: RunningServer) -> None:
    head = b"POST /v1/adapters/x/versions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rpartition(":")[2]))
    writer.write(head + b"expect: 100-continue\r\n\r\n")
    async with asyncio.timeout(5):
        assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_key_revoked_elsewhere_stops_within_a_second(
    server: RunningServer, http: httpx.AsyncClient, channel: aio.Channel
) -> None:
    url = f"sqlite:///{server.container._settings.data_dir.absolute() / 'registry.db'}"
    with closing(KeyRing(url)) as elsewhere:
        token, key = elsewhere.create("test", scopes={Scope.INFER}, change=Change("test"))
        await asyncio.sleep(1)
        assert (await summarize(http, token)).status_code == 200
        elsewhere.revoke(key.key_id, Change("test"))
    await asyncio.sleep(1)
    assert (await summarize(http, token)).status_code == 401
    status, _ = await rpc_refused(rpc_summarize(channel, token))
    assert status is grpc.StatusCode.UNAUTHENTICATED


async def test_requests_a_minute_count_over_both_wires(
    http: httpx.AsyncClient, channel: aio.Channel, make: Make
) -> None:
    token, _ = make(max_requests_per_minute=2)
    other, _ = make(max_requests_per_minute=2)
    assert (await summarize(http, token)).status_code == 200
    await rpc_summarize(channel, token)
    answer = await summarize(http, token)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RESOURCE_EXHAUSTED")
    assert answer.headers["retry-after"] == "30"
    status, trailers = await rpc_refused(rpc_summarize(channel, token))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 25_000 < int(trailers["retry-after-ms"]) <= 30_000
    assert (await summarize(http, other)).status_code == 200
    assert (await http.get("/v1/models", headers={"authorization": f"Bearer {token}"})).status_code == 200


async def test_waiting_as_long_as_told_is_enough(http: httpx.AsyncClient, make: Make) -> None:
    token, _ = make(max_requests_per_minute=60)
    while (answer := await summarize(http, token)).status_code == 200:
        pass
    assert answer.headers["retry-after"] == "1"
    await asyncio.sleep(1)
    assert (await summarize(http, token)).status_code == 200


async def test_requests_at_once_count_over_both_wires_until_they_end(
    server: RunningServer, http: httpx.AsyncClient, channel: aio.Channel, make: Make
) -> None:
    token, _ = make(max_concurrent=2)
    on_http = asyncio.create_task(summarize(http, token, TEXT))
    on_grpc = asyncio.create_task(rpc_summarize(channel, token, TEXT))
    await running(server, 2)
    answer = await summarize(http, token)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    status, trailers = await rpc_refused(rpc_summarize(channel, token))
    assert (status, trailers["retry-after-ms"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "1000")
    assert (await on_http).status_code == 200
    assert (await on_grpc).summary == TEXT
    assert (await summarize(http, token)).status_code == 200


async def test_stream_holds_its_place_until_its_caller_goes_away(
    server: RunningServer, http: httpx.AsyncClient, make: Make
) -> None:
    token, _ = make(max_concurrent=1)
    body, headers = {"text": TEXT, "stream": True}, {"authorization": f"Bearer {token}"}
    async with http.stream("POST", "/v1/summarize", json=body, headers=headers) as stream:
        await anext(stream.aiter_lines())
        assert (await summarize(http, token)).status_code == 429
    await server.idle()
    await asyncio.sleep(0.05)
    assert (await summarize(http, token)).status_code == 200


async def test_rpc_stream_holds_its_place_until_its_caller_goes_away(
    server: RunningServer, channel: aio.Channel, make: Make
) -> None:
    token, _ = make(max_concurrent=1)
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    request = inference_pb2.StreamSummarizeRequest(text=TEXT)
    call = stub.StreamSummarize(request, metadata=(("authorization", f"Bearer {token}"),))
    await call.read()
    status, _ = await rpc_refused(rpc_summarize(channel, token))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    call.cancel()
    await server.idle()
    await asyncio.sleep(0.05)
    await rpc_summarize(channel, token)


async def test_uploads_are_counted_and_reads_are_not(http: httpx.AsyncClient, make: Make) -> None:
    token, _ = make(Scope.OPERATE, max_requests_per_minute=1)
    headers = {"authorization": f"Bearer {token}"}
    files = [("files", (name, data)) for name, data in lora_files(1).items()]
    assert (await http.post("/v1/adapters/counted/versions", files=files, headers=headers)).status_code == 201
    assert (await http.post("/v1/adapters/counted/versions", files=files, headers=headers)).status_code == 429
    for _ in range(3):
        assert (await http.get("/v1/adapters/counted", headers=headers)).status_code == 200


async def test_audit_log_names_the_key_and_the_true_address(
    http: httpx.AsyncClient, channel: aio.Channel, make: Make
) -> None:
    token, key = make(Scope.OPERATE)
    lies = {"x-forwarded-for": "8.8.8.8", "forwarded": "for=8.8.8.8", "x-real-ip": "8.8.8.8"}
    headers = {"authorization": f"Bearer {token}", **lies}
    files = [("files", (name, data)) for name, data in lora_files(2).items()]
    assert (await http.post("/v1/adapters/traced/versions", files=files, headers=headers)).status_code == 201
    stub: Any = adapter_pb2_grpc.AdapterServiceStub(channel)
    request = adapter_pb2.SetAliasRequest(name="traced", alias="canary", version=1)
    await stub.SetAlias(request, metadata=(*lies.items(), ("authorization", f"Bearer {token}")))
    rows = (await http.get("/v1/adapters/traced/audit", headers=headers)).json()
    [told] = [value for value in rows.values() if isinstance(value, list)]
    assert {row["action"] for row in told} == {"upload", "set_alias"}
    assert {(row["who"], row["origin"]) for row in told} == {(f"key:{key.key_id}", "127.0.0.1")}


async def test_key_without_all_names_sees_no_metrics_and_no_whole_audit(http: httpx.AsyncClient, make: Make) -> None:
    for path in ("/metrics", "/v1/audit"):
        for patterns, status in ((("team-*",), 403), (("*",), 200)):
            token, _ = make(Scope.READ, patterns=patterns)
            answer = await http.get(path, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == status, (path, patterns, answer.text)


async def test_secret_is_in_no_log_and_no_answer(
    server: RunningServer, http: httpx.AsyncClient, channel: aio.Channel, make: Make
) -> None:
    written = io.StringIO()
    handlers = logging.getLogger().handlers[:]
    stream = logging.StreamHandler(written)
    logging.getLogger().addHandler(stream)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    try:
        token, _ = make()
        secret = token.split("_")[2]
        said = []
        for sent in (token, token[:-1], token + "x"):
            for path in ("/v1/models", "/v1/adapters", "/nothing"):
                answer = await http.get(path, headers={"authorization": f"Bearer {sent}"})
                said.append(answer.text + str(answer.headers))
            try:
                await rpc_summarize(channel, sent)
            except aio.AioRpcError as error:
                said.append(str(error.details()) + str(error.trailing_metadata()))
    finally:
        logging.getLogger().removeHandler(stream)
        logging.getLogger().setLevel(level)
    assert logging.getLogger().handlers == handlers
    assert secret[:-1] not in written.getvalue() + "".join(said)


async def test_server_without_keys_takes_any_token_and_closes_with_the_first_key(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_server(tmp_path_factory.mktemp("open"), fake_engine()) as server:
        ring = server.container._key_ring
        assert ring is not None
        async with httpx.AsyncClient(base_url=server.http) as http, aio.insecure_channel(server.grpc) as channel:
            assert (await http.get("/v1/adapters")).status_code == 200
            assert (await summarize(http, "sk-anything")).status_code == 200
            await rpc_summarize(channel, "sk-anything")
            token, key = ring.create("first", scopes={Scope.INFER}, change=Change("test"))
            assert (await http.get("/v1/adapters")).status_code == 401
            assert (await summarize(http, "sk-anything")).status_code == 401
            assert (await summarize(http, token)).status_code == 200
            ring.revoke(key.key_id, Change("test"))
            assert (await http.get("/v1/adapters")).status_code == 401


@pytest.mark.parametrize(
    ("page", "host", "status"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 200),
        ("http://localhost:{port}", "localhost:{port}", 200),
        ("https://evil.example", "127.0.0.1:{port}", 403),
        ("http://127.0.0.1:1", "127.0.0.1:{port}", 403),
        ("null", "127.0.0.1:{port}", 403),
        ("http://rebound.example:{port}", "rebound.example:{port}", 403),
    ],
)
async def test_page_in_a_browser_calls_a_server_without_keys_only_from_its_own_address(
    tmp_path_factory: pytest.TempPathFactory, page: str, host: str, status: int
) -> None:
    async with running_server(tmp_path_factory.mktemp("open"), fake_engine()) as server:
        port = server.http.rpartition(":")[2]
        headers = {"origin": page.format(port=port), "host": host.format(port=port)}
        async with httpx.AsyncClient(base_url=server.http) as http:
            answer = await http.post("/v1/summarize", json={"text": TEXT}, headers=headers)
    assert answer.status_code == status


async def test_page_of_another_site_may_call_with_a_key(http: httpx.AsyncClient, make: Make) -> None:
    headers = {"origin": "https://app.example", "authorization": f"Bearer {make()[0]}"}
    assert (await http.post("/v1/summarize", json={"text": TEXT}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv6:[2001:db8::1]:50000", "2001:db8::1"),
        ("unix:/run/medley.sock", ""),
        ("", ""),
    ],
)
async def test_peer_is_told_as_an_address(peer: str, address: str) -> None:
    assert grpc_origin(peer) == address


async def test_uploads_refused_while_they_stream_all_hear_why(channel: aio.Channel) -> None:
    header = adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(name="news"))
    chunk = adapter_pb2.FileChunk(file_name="adapter_config.json", data=b"x" * 20_000)
    messages = [header, *[adapter_pb2.UploadAdapterRequest(chunk=chunk)] * 8]
    upload = adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter
    for _ in range(10):
        codes = await asyncio.gather(*[upload(iter(messages)).code() for _ in range(10)])
        assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED}
