"""A tiny server with known latencies that speaks the wire contract over HTTP and gRPC; no engine behind it."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
import trustme
import uvicorn

from loadtest.clients import WireProtocol
from medley.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    common_pb2,
    evaluation_pb2,
    evaluation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeServer:
    """What it says and how long it takes; tests change it before they ask."""

    ttft_s: float = 0.03
    gap_s: float = 0.01
    words: tuple[str, ...] = ("The ", "cat ", "sat ", "down.")
    fails_half_way: bool = False
    serves_base_only: bool = False
    scores_late: bool = False
    http: str = ""
    grpc: str = ""
    num_started: int = 0
    uploads: list[tuple[str, str, dict[str, int]]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    ca_pem: str = ""
    ttfts_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    answering: asyncio.Event = field(default_factory=_set_event)

    def address(self, protocol: WireProtocol) -> str:
        return self.http if protocol is WireProtocol.HTTP else self.grpc

    async def generate(self) -> AsyncIterator[str]:
        clock = asyncio.get_running_loop().time
        started_s = clock()
        self.num_started += 1
        await self.answering.wait()
        ttft_s = self.ttfts_s.pop() if self.ttfts_s else self.ttft_s
        for index, word in enumerate(self.words):
            await asyncio.sleep(self.gap_s if index else ttft_s)
            if index == len(self.words) - 1:
                self.took_s.append(clock() - started_s)
            yield word
            if self.fails_half_way:
                raise FakeFailure("INTERNAL", "the engine broke")

    def used(self, adapters: Sequence[str]) -> list[str]:
        return [] if self.serves_base_only else list(adapters)

    def scores(self, references: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys(METRICS, 42.0) if references and not self.scores_late else {}

    def refusal(self, adapters: Sequence[str]) -> "FakeFailure | None":
        if "missing" in adapters:
            return FakeFailure("NOT_FOUND", "no adapter named missing")
        if "busy" in adapters:
            return FakeFailure("RESOURCE_EXHAUSTED", "the queue is full")
        return None


class FakeFailure(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
STATUS = {"NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500}
TIMINGS = {"queue_ms": 1.0, "ttft_ms": 30.0, "e2e_ms": 60.0}


class HttpFace:
    """The HTTP contract as a bare ASGI application."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.server.authorizations.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        path = scope["path"]
        if path == "/v1/summarize":
            await self.summarize(json.loads(body), send)
        elif path == "/v1/references":
            await self.answer(
                send, 200, {"request_id": json.loads(body)["request_id"], "scores": dict.fromkeys(METRICS, 50.0)}
            )
        elif path == "/metrics":
            await self.answer(send, 404, error_body(FakeFailure("NOT_FOUND", "no such page")))
        elif scope["method"] == "GET":
            await self.answer(send, 200, {"adapters": [{"name": "a", "versions": [version("a")], "aliases": {}}]})
        else:
            name = path.split("/")[3]
            files = {key: body.count(key.encode()) for key in ("adapter_config.json", "adapter_model.safetensors")}
            self.server.uploads.append((name, "stable" if b"stable" in body else "", files))
            await self.answer(send, 201, version(name))

    async def summarize(self, request: dict, send) -> None:
        failure = self.server.refusal(request["adapters"])
        if failure:
            await self.answer(send, STATUS[failure.code], error_body(failure))
        elif request.get("stream"):
            await self.stream(request, send)
        else:
            words = [word async for word in self.server.generate()]
            await self.answer(send, 200, {"summary": "".join(words), **self.ending(request, len(words))})

    async def stream(self, request: dict, send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(fields) -> None:
            data = fields if isinstance(fields, str) else json.dumps(fields)
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        uses = self.ending(request, 0)["adapters"]
        await event({"request_id": "r-1", "delta": "", "adapters": uses})
        try:
            async for word in self.server.generate():
                await event({"request_id": "r-1", "delta": word})
        except FakeFailure as failure:
            await event(error_body(failure))
        else:
            end = self.ending(request, len(self.server.words))
            del end["adapters"]
            await event({"delta": "", **end})
            await event("[DONE]")
        await send({"type": "http.response.body", "body": b""})

    def ending(self, request: dict, num_words: int) -> dict:
        scores = self.server.scores(request.get("references", ()))
        used = self.server.used(request["adapters"])
        return {
            "request_id": "r-1",
            "adapters": [{"name": name, "version": 1, "digest": "d", "kind": "lora"} for name in used],
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 7, "completion_tokens": num_words},
            "timings": TIMINGS,
            **({"scores": scores} if scores else {}),
        }

    async def answer(self, send, status: int, fields: dict) -> None:
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": json.dumps(fields).encode()})


def version(name: str) -> dict:
    return {"name": name, "version": 1, "digest": "d", "kind": "lora", "state": "ready", "more": "fields"}


def error_body(failure: FakeFailure) -> dict:
    return {"error": {"code": failure.code, "message": failure.message, "type": "x", "param": None}}


class GrpcFace(
    inference_pb2_grpc.InferenceServiceServicer,
    adapter_pb2_grpc.AdapterServiceServicer,
    evaluation_pb2_grpc.EvaluationServiceServicer,
):
    """The same contract over gRPC."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    def ending(self, request, num_words: int) -> dict:
        return {
            "request_id": "r-1",
            "finish_reason": common_pb2.FINISH_REASON_STOP,
            "usage": common_pb2.Usage(prompt_tokens=7, completion_tokens=num_words),
            "timings": common_pb2.Timings(**TIMINGS),
            "scores": self.server.scores(request.references),
        }

    def uses(self, request) -> list:
        return [common_pb2.AdapterUse(name=name, version=1) for name in self.server.used(request.adapters)]

    async def check(self, request, context) -> None:
        failure = self.server.refusal(request.adapters)
        if failure:
            await context.abort(grpc.StatusCode[failure.code], failure.message)

    async def Summarize(self, request, context):
        await self.check(request, context)
        words = [word async for word in self.server.generate()]
        return inference_pb2.SummarizeResponse(
            summary="".join(words), adapters=self.uses(request), **self.ending(request, len(words))
        )

    async def StreamSummarize(self, request, context):
        await self.check(request, context)
        yield inference_pb2.StreamSummarizeResponse(request_id="r-1", adapters=self.uses(request))
        try:
            async for word in self.server.generate():
                yield inference_pb2.StreamSummarizeResponse(request_id="r-1", delta=word)
        except FakeFailure as failure:
            await context.abort(grpc.StatusCode[failure.code], failure.message)
        yield inference_pb2.StreamSummarizeResponse(**self.ending(request, len(self.server.words)))

    async def SubmitReferences(self, request, context):
        return evaluation_pb2.SubmitReferencesResponse(
            request_id=request.request_id, scores=dict.fromkeys(METRICS, 50.0)
        )

    async def UploadAdapter(self, requests, context):
        header, files = None, {}
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            else:
                files[request.chunk.file_name] = files.get(request.chunk.file_name, 0) + 1
        self.server.uploads.append((header.name, header.alias, files))
        return adapter_pb2.UploadAdapterResponse(version=self.version(header.name))

    async def ListAdapters(self, request, context):
        return adapter_pb2.ListAdaptersResponse(adapters=[adapter_pb2.Adapter(name="a", versions=[self.version("a")])])

    def version(self, name: str) -> adapter_pb2.AdapterVersion:
        return adapter_pb2.AdapterVersion(
            name=name,
            version=1,
            digest="d",
            kind=common_pb2.ADAPTER_KIND_LORA,
            state=adapter_pb2.ADAPTER_STATE_READY,
        )


class Authorizations(grpc.aio.ServerInterceptor):
    """Remembers what callers say they are."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def intercept_service(self, continuation, details):
        self.server.authorizations.append(dict(details.invocation_metadata).get("authorization", ""))
        return await continuation(details)


@asynccontextmanager
async def running(certificate: trustme.LeafCert | None = None) -> AsyncIterator[FakeServer]:
    """Run a server, over TLS with a certificate."""
    fake = FakeServer()
    config = uvicorn.Config(
        HttpFace(fake),
        port=0,
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=0,
    )
    config.load()
    face = GrpcFace(fake)
    rpc = grpc.aio.server(interceptors=[Authorizations(fake)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(face, rpc)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(face, rpc)
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(face, rpc)
    if certificate is None:
        grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    else:
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(config.ssl)
        pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
        grpc_port = rpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    # Started and stopped by hand: its own loop looks for the end only ten times a second.
    http = uvicorn.Server(config)
    http.lifespan = config.lifespan_class(config)
    await http.startup()
    await rpc.start()
    fake.grpc = f"127.0.0.1:{grpc_port}"
    fake.http = f"127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}"
    yield fake
    await http.shutdown()
    await rpc.stop(0)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with running() as fake:
        yield fake


@pytest.fixture
async def secure_server() -> AsyncIterator[FakeServer]:
    authority = trustme.CA()
    async with running(authority.issue_cert("127.0.0.1")) as fake:
        fake.ca_pem = authority.cert_pem.bytes().decode()
        yield fake
