"""The evaluation routes: figures as documented, references in bulk and in sets, and hostile bodies of both."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc import aio

from medley.v1 import evaluation_pb2, evaluation_pb2_grpc
from server.api.http.config import HttpConfig
from server.evaluation.records import hash_text
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSONL = {"content-type": "application/jsonl"}
CSV = {"content-type": "text/csv; charset=utf-8"}
TEXT = "one two three"


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def figures_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that took long to make are not given again: a busy machine's first ones take long."""
    monkeypatch.setattr("server.evaluation.reports._CHEAP_S", 60.0)


async def answered(client: httpx.AsyncClient, request_id: str, text: str = TEXT) -> str:
    answer = await client.post("/v1/summarize", json={"text": text, "request_id": request_id})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["summary"])


async def base_figures(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get("/v1/evaluations", params={"adapter": "base", **query})
    [entry] = answer.json()["evaluations"]
    assert isinstance(entry, dict)
    return entry


async def test_figures_have_every_field_and_both_wires_say_the_same(
    server: RunningServer, client: httpx.AsyncClient
) -> None:
    for number in range(3):
        summary = await answered(client, f"figures-{number}")
        reference = summary if number else "something else"
        body = {"request_id": f"figures-{number}", "references": [reference]}
        assert (await client.post("/v1/references", json=body)).status_code == 200
    entry = await base_figures(client, window_s=86_400, num_windows=2)
    assert set(entry) == {
        *("adapters", "num_finished", "num_errors", "num_scored"),
        *("means", "metrics", "windows", "drift"),
    }
    assert {"rouge1", "rougeL", "repetition", "copy_rate", "length_ratio"} <= set(entry["metrics"])
    assert set(entry["metrics"]["rougeL"]) == {"count", "mean", "low", "high", "p10", "p50", "p90"}
    assert entry["means"]["rougeL"] == entry["metrics"]["rougeL"]["mean"]
    assert len(entry["windows"]) == 2
    last = entry["windows"][-1]
    assert set(last) == {"start_s", "end_s", "num_finished", "num_scored", "means", "low", "high"}
    assert last["low"]["rougeL"] <= last["means"]["rougeL"] <= last["high"]["rougeL"]
    async with aio.insecure_channel(server.grpc) as channel:
        stub = evaluation_pb2_grpc.EvaluationServiceStub(channel)
        asked = evaluation_pb2.GetEvaluationRequest(adapter="base", window_s=86_400, num_windows=2)
        [message] = (await stub.GetEvaluation(asked)).evaluations
        plain = (await stub.GetEvaluation(evaluation_pb2.GetEvaluationRequest())).evaluations[0]
        with pytest.raises(aio.AioRpcError) as refused:
            await stub.GetEvaluation(evaluation_pb2.GetEvaluationRequest(num_windows=0))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(plain.windows) == 24
    assert (message.num_finished, message.num_errors) == (entry["num_finished"], entry["num_errors"])
    assert message.num_scored == entry["num_scored"]
    for name, figures in entry["metrics"].items():
        assert {field: getattr(message.metrics[name], field) for field in figures} == figures
    for window, wired in zip(message.windows, entry["windows"], strict=True):
        assert (window.start_s, window.num_scored, dict(window.means)) == (
            wired["start_s"],
            wired["num_scored"],
            wired["means"],
        )


async def test_drift_is_told_once_there_are_enough_requests(client: httpx.AsyncClient) -> None:
    for number in range(30):
        await answered(client, f"before-{number}", "short")
    # The hour may have struck between them.
    assert sum(window["num_finished"] for window in (await base_figures(client))["windows"][-2:]) >= 30
    await asyncio.sleep(1.1)
    for number in range(30):
        await answered(client, f"now-{number}", "a text that is very much longer than those before it were")
    figures = await base_figures(client, window_s=1)
    if figures["drift"]:  # where the machine was too slow for thirty requests in a second there is none to see
        assert figures["drift"]["prompt_tokens"]["drifted"]
        assert figures["drift"]["prompt_tokens"]["statistic"] > 0.5


@pytest.mark.parametrize("query", ["window_s=0", "window_s=x", "window_s=1e300", "num_windows=0", "num_windows=99999"])
async def test_windows_out_of_range_are_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/v1/evaluations?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGUMENT")


async def test_adapter_that_nobody_used_has_no_figures(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/evaluations?adapter=never")).json() == {"evaluations": []}


async def test_batches_of_both_forms_are_scored(client: httpx.AsyncClient) -> None:
    summary = await answered(client, "batch-1")
    await answered(client, "batch-2")
    rows = [{"request_id": "batch-1", "reference": summary}, {"request_id": "unknown", "references": ["x"]}]
    before = (await base_figures(client))["num_scored"]
    body = "\n".join(map(json.dumps, rows)) + "\nno json\n"
    answer = await client.post("/v1/references/batch", content=body, headers=JSONL)
    assert answer.json() == {
        "num_accepted": 1,
        "num_unknown": 1,
        "num_refused": 1,
        "errors": [{"line": 3, "message": "not valid JSON"}],
    }
    answer = await client.post("/v1/references/batch", content="request_id,reference\nbatch-2,one two\n", headers=CSV)
    assert answer.json()["num_accepted"] == 1
    assert (await base_figures(client))["num_scored"] == before + 2


HOSTILE = [
    b"",
    b"\n" * 1000,
    b"\x00" * 100_000,
    b"\xff" * 100_000,
    b"{" * 500_000,
    b'{"request_id": "' + b"x" * 1_000_000,
    b'{"a":' * 100_000,
    b"[[]]\n" * 20_001,
    b'"',
    b"request_id,reference",
    b"request_id,reference\n" + b'"' * 999_999,
    b"request_id,reference\n" + b"," * 500_000 + b"\n",
    b"," * 1_000_000,
    "request_id,reference\n\N{RIGHT-TO-LEFT OVERRIDE},\ud800".encode("utf-8", "surrogatepass"),
]


@pytest.mark.parametrize("headers", [JSONL, CSV], ids=["jsonl", "csv"])
@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_batch_is_refused_or_told_line_by_line(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str]
) -> None:
    for method, path in (("POST", "/v1/references/batch"), ("PUT", "/v1/reference-sets/hostile")):
        answer = await client.request(method, path, content=body, headers=headers)
        assert len(answer.content) < 50_000
        if answer.status_code == 200:
            told = answer.json()
            assert (told["num_accepted"], told["num_unknown"]) == (0, 0)
            assert told["num_refused"] >= 1
            assert told["errors"]
        else:
            assert answer.status_code in {400, 413, 415}, answer.text
            assert answer.json()["error"]["message"]
    assert (await client.get("/v1/reference-sets")).json() == {"reference_sets": []}


async def test_batch_of_another_kind_or_too_large_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/references/batch", json={"request_id": "a", "reference": "x"})
    assert answer.status_code == 415
    assert (await client.post("/v1/references/batch", content=b"x", headers={"content-type": ""})).status_code == 415
    large = b" " * (HttpConfig().max_body_bytes + 1)
    assert (await client.post("/v1/references/batch", content=large, headers=JSONL)).status_code == 413


async def test_reference_set_scores_later_requests_until_it_is_removed(client: httpx.AsyncClient) -> None:
    rows = [
        {"text": "an input of the set", "references": ["an input"]},
        {"input_sha256": hash_text("another"), "reference": "x"},
    ]
    body = "\n".join(map(json.dumps, rows))
    put = await client.put("/v1/reference-sets/gold", content=body, headers=JSONL)
    assert put.status_code == 200
    assert (put.json()["name"], put.json()["num_references"]) == ("gold", 2)
    assert (await client.get("/v1/reference-sets")).json() == {"reference_sets": [put.json()]}
    await answered(client, "before-the-set")
    before = (await base_figures(client))["num_scored"]
    await answered(client, "in-a-set", "an input of the set")
    async with asyncio.timeout(20):
        while (await base_figures(client))["num_scored"] == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await client.delete("/v1/reference-sets/gold")).status_code == 204
    assert (await client.delete("/v1/reference-sets/gold")).status_code == 404
    assert (await client.get("/v1/reference-sets")).json() == {"reference_sets": []}


async def test_bad_row_of_a_set_is_named_by_its_line(client: httpx.AsyncClient) -> None:
    body = '{"text": "a", "reference": "x"}\n{"text": "b"}'
    answer = await client.put("/v1/reference-sets/gold", content=body, headers=JSONL)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body")
    assert "line 2" in answer.json()["error"]["message"]
    assert (await client.put("/v1/reference-sets/a%20b", content=body, headers=JSONL)).status_code == 400
