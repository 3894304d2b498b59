"""TLS on both ports, and client certificates."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc import aio

from medley.v1 import inference_pb2, inference_pb2_grpc
from server.access.tls import TlsConfig
from server.api.grpc.server import serve_grpc
from server.api.http.server import serve_http
from server.core.errors import FailedPreconditionError
from tests.fixtures.certificates import Certificates, Identity, make_certificates
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> AsyncIterator[RunningServer]:
    """Shows its certificate."""
    folder = tmp_path_factory.mktemp("server")
    async with running_server(folder, fake_engine(), tls=certificates.config(mutual=False)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mutual(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> AsyncIterator[RunningServer]:
    """Asks for the client's, too."""
    folder = tmp_path_factory.mktemp("mutual")
    async with running_server(folder, fake_engine(), tls=certificates.config(mutual=True)) as running:
        yield running


async def over_http(server: RunningServer, ca: Path, client: Identity | None = None) -> int:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    async with httpx.AsyncClient(base_url=server.http, verify=context, timeout=5) as http:
        return (await http.post("/v1/summarize", json={"text": "hi"})).status_code


async def over_grpc(server: RunningServer, ca: Path, client: Identity | None = None) -> str:
    async with aio.secure_channel(server.grpc, grpc_credentials(ca, client)) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        return str((await stub.Summarize(inference_pb2.SummarizeRequest(text="hi"), timeout=5)).summary)


def grpc_credentials(ca: Path, client: Identity | None) -> grpc.ChannelCredentials:
    key, cert = (None, None) if client is None else (client.key.read_bytes(), client.cert.read_bytes())
    return grpc.ssl_channel_credentials(ca.read_bytes(), key, cert)


async def test_both_ports_speak_tls(server: RunningServer, certificates: Certificates) -> None:
    assert await over_http(server, certificates.ca) == 200
    assert await over_grpc(server, certificates.ca) == "hi"


async def test_certificate_of_the_server_is_from_its_authority(
    server: RunningServer, certificates: Certificates
) -> None:
    with pytest.raises(httpx.ConnectError):
        await over_http(server, certificates.client_ca)
    with pytest.raises(aio.AioRpcError) as caught:
        await over_grpc(server, certificates.client_ca)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_plain_text_is_not_answered(server: RunningServer) -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(server.http.replace("https", "http") + "/healthz")
    async with aio.insecure_channel(server.grpc) as channel:
        with pytest.raises(aio.AioRpcError):
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_tls_is_not_spoken(server: RunningServer) -> None:
    for address in (server.http.removeprefix("https://"), server.grpc):
        assert await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_1)


def handshake(address: str, version: ssl.TLSVersion) -> str | None:
    """Offer one version of TLS, with whatever ciphers it needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = version
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.version()


async def test_client_with_a_certificate_of_the_authority_is_let_in(
    mutual: RunningServer, certificates: Certificates
) -> None:
    assert await over_http(mutual, certificates.ca, certificates.client) == 200
    assert await over_grpc(mutual, certificates.ca, certificates.client) == "hi"


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_client_with_no_or_another_certificate_is_not_let_in(
    mutual: RunningServer, certificates: Certificates, who: str
) -> None:
    client = certificates.stranger if who == "stranger" else None
    with pytest.raises(httpx.TransportError):
        await over_http(mutual, certificates.ca, client)
    with pytest.raises(aio.AioRpcError) as caught:
        await over_grpc(mutual, certificates.ca, client)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificate_that_cannot_be_used_keeps_both_ports_shut(certificates: Certificates) -> None:
    wrong: Any = None
    tls = TlsConfig(certificates.server.cert, certificates.client.key)
    with pytest.raises(FailedPreconditionError, match="mismatch"):
        await serve_http(wrong, "127.0.0.1", 0, lambda _: None, tls=tls)
    with pytest.raises(FailedPreconditionError, match="mismatch"):
        await serve_grpc(wrong, "127.0.0.1", 0, lambda _: None, tls=tls)
