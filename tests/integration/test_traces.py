"""Traces of a whole server, as a collector on loopback gets them: over both front ends, and when it does not answer."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc import aio

from medley.v1 import inference_pb2, inference_pb2_grpc
from server.evaluation.config import EvaluationConfig
from server.observability.spans import TracingConfig
from tests.fixtures.front_end_clients import HttpClient
from tests.fixtures.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER_KIND = 2
CANARY = "my-dog-is-called-Rumpelstilzchen"
ENGINE = fake_engine(step_time_s=0.002, max_num_seqs=4)
STAGES = ["lease", "prompt", "queue", "prefill", "decode", "score"]
PARENT_TRACE, PARENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SUMMARIZE = {"http": "POST /v1/summarize", "grpc": "medley.v1.InferenceService/Summarize"}


def tracing(receiver: Receiver, **options: Any) -> TracingConfig:
    return TracingConfig(receiver.endpoint, **({"send_every_s": 0.02, "timeout_s": 10.0} | options))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path_factory.mktemp("server"), ENGINE, tracing=tracing(receiver)) as running:
        async with HttpClient(running) as client:
            await client.upload("lora", lora_files(seed=1))
            await client.upload("prompt", prompt_files(seed=2))
        yield running


async def summarize(
    server: RunningServer,
    wire: str,
    request_id: str,
    text: str = "one two three",
    headers: dict[str, str] | None = None,
) -> str:
    """Ask with both adapters and references; return the gRPC status's or HTTP status's name."""
    adapters, references = ["lora", "prompt"], ["one two"]
    if wire == "http":
        body = {"text": text, "adapters": adapters, "references": references, "request_id": request_id}
        async with httpx.AsyncClient(base_url=server.http) as client:
            return str((await client.post("/v1/summarize", json=body, headers=headers)).status_code)
    async with aio.insecure_channel(server.grpc) as channel:
        message = inference_pb2.SummarizeRequest(
            text=text, adapters=adapters, references=references, request_id=request_id
        )
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            await stub.Summarize(message, metadata=tuple((headers or {}).items()))
        except aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"


async def request_span(receiver: Receiver, request_id: str) -> ReceivedSpan:
    async with asyncio.timeout(10):
        while True:
            for span in receiver.named("request"):
                if span.attributes["medley.request_id"] == request_id:
                    return span
            await asyncio.sleep(0.01)


async def server_span(receiver: Receiver, of: ReceivedSpan) -> ReceivedSpan:
    async with asyncio.timeout(10):
        while True:
            for span in receiver.spans:
                if span.span_id == of.parent_id:
                    return span
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_trace_of_a_request_has_every_stage_in_order(
    server: RunningServer, receiver: Receiver, wire: str
) -> None:
    await summarize(server, wire, f"stages-{wire}")
    request = await request_span(receiver, f"stages-{wire}")
    call = await server_span(receiver, request)

    assert (call.name, call.kind, call.parent_id) == (SUMMARIZE[wire], SERVER_KIND, "")
    stages = receiver.under(request)
    assert [stage.name for stage in stages] == STAGES
    assert {span.trace_id for span in (call, request, *stages)} == {call.trace_id}
    assert request.begun_ns == stages[0].begun_ns
    assert request.ended_ns == stages[-1].ended_ns
    for earlier, later in pairwise(stages):
        assert earlier.begun_ns <= earlier.ended_ns == later.begun_ns
    # Half a millisecond: the two clocks are read one after the other.
    assert call.begun_ns <= request.begun_ns + 500_000
    assert request.ended_ns <= call.ended_ns + 500_000
    assert abs(call.ended_ns - time.time_ns()) < 60e9


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_trace_of_a_request_tells_its_facts(server: RunningServer, receiver: Receiver, wire: str) -> None:
    await summarize(server, wire, f"facts-{wire}")
    request = await request_span(receiver, f"facts-{wire}")
    facts = request.attributes
    assert facts["medley.adapters"] == ["lora:1", "prompt:1"]
    assert [len(digest) for digest in facts["medley.digests"]] == [64, 64]
    assert (facts["medley.code"], facts["medley.finish_reason"]) == ("OK", "stop")
    assert (facts["medley.num_prompt_tokens"], facts["medley.num_completion_tokens"]) == (14, 13)
    call = await server_span(receiver, request)
    assert call.attributes["medley.code"] == "OK"
    if wire == "http":
        assert call.attributes["http.response.status_code"] == 200
        assert call.attributes["http.route"] == "/v1/summarize"
        assert call.attributes["medley.request_id"] == "facts-http"
    else:
        assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.OK.value[0]
    assert receiver.resources[0]["service.name"] == "medley"


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_trace_goes_on_where_the_caller_began_it(server: RunningServer, receiver: Receiver, wire: str) -> None:
    await summarize(server, wire, f"goes-on-{wire}", headers={"traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-01"})
    call = await server_span(receiver, await request_span(receiver, f"goes-on-{wire}"))
    assert (call.trace_id, call.parent_id) == (PARENT_TRACE, PARENT_SPAN)


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_call_whose_caller_does_not_trace_is_not_traced(
    server: RunningServer, receiver: Receiver, wire: str
) -> None:
    unsampled = {"traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-00"}
    await summarize(server, wire, f"unsampled-{wire}", headers=unsampled)
    await summarize(server, wire, f"sampled-{wire}")
    await request_span(receiver, f"sampled-{wire}")
    assert all(span.attributes["medley.request_id"] != f"unsampled-{wire}" for span in receiver.named("request"))


@pytest.mark.parametrize("wire", ["http", "grpc"])
@pytest.mark.parametrize("headers", [{"traceparent": "nonsense"}, {"traceparent": "00-0-0-01"}, {"tracestate": "a=b"}])
async def test_trace_headers_that_mean_nothing_begin_a_trace(
    server: RunningServer, receiver: Receiver, wire: str, headers: dict[str, str]
) -> None:
    request_id = f"nonsense-{wire}-{len(receiver.spans)}"
    assert await summarize(server, wire, request_id, headers=headers) in {"200", "OK"}
    call = await server_span(receiver, await request_span(receiver, request_id))
    assert call.parent_id == ""


@pytest.mark.parametrize(("wire", "status"), [("http", "400"), ("grpc", "INVALID_ARGUMENT")])
async def test_trace_of_a_refused_request_ends_where_it_was_refused(
    server: RunningServer, receiver: Receiver, wire: str, status: str
) -> None:
    assert await summarize(server, wire, f"refused-{wire}", text="x" * 2000) == status
    request = await request_span(receiver, f"refused-{wire}")
    assert [stage.name for stage in receiver.under(request)] == ["lease", "prompt"]
    assert (request.attributes["medley.code"], request.is_error) == ("INVALID_ARGUMENT", False)
    assert (await server_span(receiver, request)).is_error is False


async def test_call_without_a_route_is_named_without_the_callers_words(
    server: RunningServer, receiver: Receiver
) -> None:
    async with httpx.AsyncClient(base_url=server.http) as client:
        await client.get(f"/{CANARY}", params={"q": CANARY})
    (span,) = await asyncio.to_thread(receiver.wait_for, "GET (no route)")
    assert span.attributes["http.response.status_code"] == 404


async def test_probes_are_not_traced(server: RunningServer, receiver: Receiver) -> None:
    async with httpx.AsyncClient(base_url=server.http) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/models"):
            await client.get(path)
    await asyncio.to_thread(receiver.wait_for, "GET /v1/models")
    assert not [
        span.name
        for span in receiver.spans
        if "/healthz" in span.name or "readyz" in span.name or "metrics" in span.name
    ]


async def test_stream_that_its_caller_leaves_is_told_as_cancelled(server: RunningServer, receiver: Receiver) -> None:
    body = {"text": "long " * 100, "stream": True, "max_new_tokens": 256, "request_id": "left"}
    async with (
        httpx.AsyncClient(base_url=server.http) as client,
        client.stream("POST", "/v1/summarize", json=body) as response,
    ):
        await anext(response.aiter_lines())
    request = await request_span(receiver, "left")
    assert request.attributes["medley.code"] == "CANCELLED"
    assert [stage.name for stage in receiver.under(request)] == STAGES[:-1]


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_trace_has_no_text_and_no_key(server: RunningServer, receiver: Receiver, wire: str) -> None:
    headers = {"authorization": f"Bearer {CANARY}", "baggage": f"a={CANARY}"}
    await summarize(server, wire, f"canary-{wire}", text=f"{CANARY} {CANARY}", headers=headers)
    await server_span(receiver, await request_span(receiver, f"canary-{wire}"))
    sent = b"".join(receiver.bodies)
    assert f"canary-{wire}".encode() in sent
    assert CANARY.encode() not in sent


async def test_log_line_of_a_traced_request_names_the_trace(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"tracing": tracing(receiver), "log": {"requests": True}}
    caplog.set_level(logging.INFO, "medley.requests")
    async with (
        running_server(tmp_path, ENGINE, **settings) as server,
        httpx.AsyncClient(base_url=server.http) as client,
    ):
        await client.post("/v1/summarize", json={"text": "one two", "request_id": "logged"})
    (record,) = [record for record in caplog.records if record.name == "medley.requests"]
    assert record.trace_id == (await request_span(receiver, "logged")).trace_id  # type: ignore[attr-defined]


async def test_sample_rate_of_zero_sends_nothing(tmp_path: Path) -> None:
    with otlp_receiver() as collector:
        async with running_server(tmp_path, ENGINE, tracing=tracing(collector, sample_rate=0.0)) as server:
            await summarize(server, "http", "r")
        assert collector.spans == []


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "gone"])
async def test_collector_in_trouble_hurts_nobody(tmp_path: Path, trouble: str) -> None:
    with otlp_receiver(status=500 if trouble == "refuses" else 200, hangs=trouble == "hangs") as collector:
        config = tracing(collector, max_num_queued=20, timeout_s=1.0)
        if trouble == "gone":
            config = TracingConfig("http://127.0.0.1:9/v1/traces", send_every_s=0.02, timeout_s=1.0, max_num_queued=20)
        scoring = EvaluationConfig(warm_at_start=False)
        async with running_server(tmp_path, ENGINE, tracing=config, evaluation=scoring) as server:
            began_s = time.monotonic()
            async with httpx.AsyncClient(base_url=server.http) as client:
                for index in range(40):
                    answer = await client.post("/v1/summarize", json={"text": "one two", "request_id": f"r{index}"})
                    assert answer.status_code == 200
            assert time.monotonic() - began_s < 30
            registry = server.container.services.metrics.registry
            stopping_s = time.monotonic()
        assert time.monotonic() - stopping_s < 20
        spans = {
            outcome: registry.get_sample_value("medley_trace_spans_total", {"outcome": outcome}) or 0
            for outcome in ("sent", "failed", "dropped")
        }
    assert spans["sent"] == 0
    # Seven of each of 40 requests, of which those on their way when the server ended are not counted.
    assert spans["dropped"] + spans["failed"] > 7 * 40 - 30
