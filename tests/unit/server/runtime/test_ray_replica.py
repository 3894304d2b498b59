"""A replica without Ray: the same answers as a server's own ports, and a data directory of its own."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from medley.v1 import adapter_pb2
from medley.v1 import inference_pb2 as pb
from server.api.grpc.access import GRPC_RULES
from server.api.grpc.in_process import METHODS, Ended
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.engine.factory import EngineConfig
from server.evaluation.config import EvaluationConfig
from server.runtime.ray_checks import check_may_replicate
from server.runtime.ray_replica import Replica, as_they_come, own_directory
from server.settings import RayConfig, Settings
from tests.fixtures.peft_files import lora_files
from tests.fixtures.ray_stand_in import plain_scope

PEER = "ipv4:192.0.2.7:40000"


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    settings = Settings(
        engine=EngineConfig(name="fake", step_time_s=0.002),
        evaluation=EvaluationConfig(warm_at_start=False),
        data_dir=tmp_path / "data",
        library=tmp_path / "none",
        access={"allow_open": True},
    )
    replica = Replica.__new__(Replica)
    await replica.__init__(settings.model_dump(mode="json"))  # type: ignore[misc] # as Ray Serve makes it
    yield replica
    await replica._stop()
    Replica.__del__ = lambda _: None  # type: ignore[method-assign,assignment] # Ray Serve does as much


async def _http(replica: Replica, method: str, path: str, *parts: Any) -> tuple[int, bytes]:
    messages = [message async for some in replica.http(plain_scope(method, path), parts or ([],)) for message in some]
    return messages[0]["status"], b"".join(message["body"] for message in messages[1:])


async def _grpc(replica: Replica, name: str, *parts: Any) -> tuple[list[bytes], Ended]:
    items = [item async for some in replica.grpc(name, parts, [], PEER) for item in some]
    (ended,) = (item for item in items if isinstance(item, Ended))
    assert items[-1] is ended
    return [item for item in items if isinstance(item, bytes)], ended


async def _promise(*items: bytes) -> list[bytes]:
    return list(items)


async def test_http_call_is_answered_as_by_a_server(replica: Replica) -> None:
    status, body = await _http(replica, "POST", "/v1/summarize", [b'{"text": ', b'"one two"}'])
    assert (status, json.loads(body)["summary"]) == (200, "one two")
    status, body = await _http(replica, "POST", "/v1/summarize", _promise(b'{"text": 1}'), [])
    assert (status, json.loads(body)["error"]["code"]) == (400, "INVALID_ARGUMENT")
    assert await _http(replica, "GET", "/readyz") == (200, (await _http(replica, "GET", "/readyz"))[1])


async def test_grpc_call_is_answered_as_by_a_server(replica: Replica) -> None:
    (data,), ended = await _grpc(replica, "Summarize", [pb.SummarizeRequest(text="one two").SerializeToString()])
    assert (pb.SummarizeResponse.FromString(data).summary, ended.code) == ("one two", 0)
    many, ended = await _grpc(
        replica, "StreamSummarize", [pb.StreamSummarizeRequest(text="one two").SerializeToString()]
    )
    pieces = [pb.StreamSummarizeResponse.FromString(data) for data in many]
    assert "".join(piece.delta for piece in pieces) == "one two"
    assert len(pieces) > 2
    assert ended.code == 0


async def test_grpc_refusal_has_the_status_and_the_trailers(replica: Replica) -> None:
    request = pb.SummarizeRequest(text="x", adapters=["nobody"], request_id="r-9")
    got, ended = await _grpc(replica, "Summarize", [request.SerializeToString()])
    assert (got, ended.code, ended.details) == ([], 5, "there is no adapter 'nobody'")
    assert dict(ended.trailers) == {"medley-code": "NOT_FOUND", "medley-request-id": "r-9"}


async def test_grpc_bytes_that_are_no_message_are_refused(replica: Replica) -> None:
    got, ended = await _grpc(replica, "Summarize", [b"\xff\xff"])
    assert (got, ended.code) == ([], 3)


async def test_upload_comes_in_parts_and_is_seen_with_its_callers_address(replica: Replica) -> None:
    header = adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(name="mine"))
    files = [
        adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.FileChunk(file_name=name, data=data)).SerializeToString()
        for name, data in lora_files().items()
    ]
    (data,), ended = await _grpc(replica, "UploadAdapter", [header.SerializeToString()], _promise(*files), [])
    assert ended == Ended(0, "", ())
    assert adapter_pb2.UploadAdapterResponse.FromString(data).version.name == "mine"
    (listed,), _ = await _grpc(replica, "ListAudit", [adapter_pb2.ListAuditRequest().SerializeToString()])
    assert {record.origin for record in adapter_pb2.ListAuditResponse.FromString(listed).records} == {"192.0.2.7"}
    status, body = await _http(replica, "POST", "/v1/summarize", [b'{"text": "one two", "adapters": ["mine"]}'])
    assert status == 200
    assert json.loads(body)["summary"] != "one two"
    assert await replica.loads() == (os.getpid(), 1)


async def test_caller_who_goes_away_frees_the_row(replica: Replica) -> None:
    body = json.dumps({"text": "long " * 40, "stream": True}).encode()
    answers = replica.http(plain_scope("POST", "/v1/summarize"), [[body]])
    await anext(answers)
    await anext(answers)
    assert replica._running.stats.num_running == 1
    await answers.aclose()
    async with asyncio.timeout(5):
        while replica._running.stats.num_running:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.002)


def test_every_method_of_ours_has_a_short_name_of_its_own() -> None:
    ours = {path for path in GRPC_RULES if path.startswith("/medley.v1.")}
    assert {method.path for method in METHODS.values()} == ours


def test_each_replica_on_a_machine_has_a_directory_of_its_own(tmp_path: Path) -> None:
    with own_directory(tmp_path) as first, own_directory(tmp_path) as second:
        assert (first, second) == (tmp_path / "replica-0", tmp_path / "replica-1")
    with own_directory(tmp_path) as again:
        assert again == first


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError), own_directory(tmp_path / "file"):
        pass


async def test_work_that_fails_gives_what_it_put_and_then_its_error() -> None:
    async def work(put: Any) -> None:
        put(1)
        await asyncio.sleep(0)
        put(2)
        raise ValueError("why")

    answers = as_they_come(work)
    assert [await anext(answers), await anext(answers)] == [[1], [2]]
    with pytest.raises(ValueError, match="why"):
        await anext(answers)


SHARED = {"registry": {"url": "postgresql://db/medley"}, "store": {"url": "s3://bucket/medley"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SHARED | {"registry": {}}, "PostgreSQL"),
        (SHARED | {"registry": {"url": "sqlite:///x.db"}}, "PostgreSQL"),
        (SHARED | {"store": {}}, "store.url"),
        ({"ray": RayConfig(num_replicas=1, max_num_replicas=2)}, "PostgreSQL"),
        (SHARED | {"tls": {"cert_file": "a", "key_file": "b"}}, "TLS"),
    ],
)
def test_replicas_that_would_not_share_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(FailedPreconditionError, match=words):
        check_may_replicate(Settings(**settings))


def test_one_replica_needs_nothing_shared() -> None:
    check_may_replicate(Settings(ray=RayConfig(num_replicas=1)))
    with pytest.raises(InvalidArgumentError):
        check_may_replicate(Settings(ray=RayConfig(num_replicas=1, spill_least=0)))
    check_may_replicate(Settings(**SHARED))
