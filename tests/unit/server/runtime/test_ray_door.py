"""What a door does when replicas die: it repeats what may be repeated, and says once what may not."""

import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from ray.serve.exceptions import BackPressureError

from medley.v1 import inference_pb2 as pb
from server.api.grpc.in_process import Ended
from server.api.http.config import HttpConfig
from server.runtime.ray_calls import EndedError, GrpcDoor
from server.runtime.ray_door import HttpDoor, Replicas
from tests.fixtures.ray_stand_in import DyingReplica, StandInHandle, WorkingReplica

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PIECE = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False}
WELL = Ended(0, "", ())
MESSAGE = pb.SummarizeResponse(summary="s").SerializeToString()
INFER = "/v1/summarize"


class Context:
    """Ray Serve's, as far as a door uses it."""

    def __init__(self) -> None:
        self.status: grpc.StatusCode | None = None
        self.details = ""
        self.trailers: list[tuple[str, str]] = []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", "Bearer key")]

    def peer(self) -> str:
        return "ipv4:192.0.2.9:1"

    def set_code(self, status: grpc.StatusCode) -> None:
        self.status = status

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailers: list[tuple[str, str]]) -> None:
        self.trailers = trailers


async def _http(
    handle: StandInHandle,
    path: str = INFER,
    body: bytes = b"{}",
    headers: Sequence[tuple[bytes, bytes]] = (),
    config: HttpConfig | None = None,
    prefix: str = "",
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    pieces = iter([{"type": "http.request", "body": body, "more_body": False}])
    scope = {"type": "http", "method": "POST", "path": prefix + path, "root_path": prefix}
    scope |= {"raw_path": (prefix + path).encode(), "headers": [(b"x-request-id", b"r-1"), *headers]}

    async def receive() -> dict[str, Any]:
        return next(pieces)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await HttpDoor(Replicas(handle), config or HttpConfig())(scope, receive, send)
    return sent


def _error(sent: list[dict[str, Any]]) -> tuple[int, str]:
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]


async def test_call_whose_replica_dies_before_an_answer_is_repeated() -> None:
    handle = StandInHandle([DyingReplica(), DyingReplica(START), WorkingReplica(START, PIECE, LAST)])
    assert await _http(handle) == [START, PIECE, LAST]
    assert [method for method, *_ in handle.asked] == ["describe", "http", "http", "http"]


async def test_stream_whose_replica_dies_ends_once_with_unavailable() -> None:
    handle = StandInHandle([DyingReplica(START, PIECE), WorkingReplica(START, LAST)])
    sent = await _http(handle)
    assert sent[:2] == [START, PIECE]
    (end,) = sent[2:]
    assert json.loads(end["body"].removeprefix(b"data: "))["error"]["code"] == "UNAVAILABLE"
    assert not end.get("more_body", False)


async def test_replicas_that_all_die_are_unavailable() -> None:
    handle = StandInHandle([DyingReplica()])
    assert _error(await _http(handle)) == (503, "UNAVAILABLE")
    assert len(handle.asked) == 1 + 4


@pytest.mark.parametrize(("headers", "num_tries"), [((), 1), (((b"Idempotency-Key", b"k"),), 2)])
async def test_change_is_repeated_only_under_an_idempotency_key(headers: Any, num_tries: int) -> None:
    handle = StandInHandle([DyingReplica(), WorkingReplica(START, LAST)])
    sent = await _http(handle, "/v1/adapters/a/rollback", headers=headers)
    assert len(handle.asked) == num_tries
    assert (sent == [START, LAST]) is (num_tries == 2)
    if num_tries == 1:
        assert _error(sent) == (503, "UNAVAILABLE")


async def test_full_queues_are_resource_exhausted() -> None:
    handle = StandInHandle([DyingReplica(error=lambda: BackPressureError(1, 1))])
    sent = await _http(handle)
    assert _error(sent) == (429, "RESOURCE_EXHAUSTED")
    assert (b"retry-after", b"1") in sent[0]["headers"]


async def test_unknown_error_says_no_more_than_internal() -> None:
    sent = await _http(StandInHandle([DyingReplica(error=lambda: ValueError("secret"))]))
    assert _error(sent) == (500, "INTERNAL")
    assert b"secret" not in sent[1]["body"]


async def test_call_goes_by_the_adapter_its_body_names() -> None:
    handle = StandInHandle([WorkingReplica(START, LAST)])
    await _http(handle, body=b'{"text": "x", "adapters": ["tweets@canary"]}')
    await _http(handle, path="/v1/completions", body=b'{"model": "fake", "prompt": "x"}')
    assert [key for method, key, _ in handle.asked if method == "http"] == ["tweets", ""]


async def test_call_behind_a_prefix_is_the_one_without_it() -> None:
    handle = StandInHandle([WorkingReplica(START, LAST)])
    await _http(handle, body=b'{"text": "x", "adapters": ["tweets"]}', prefix="/medley")
    [(key, (scope, _))] = [(key, arguments) for method, key, arguments in handle.asked if method == "http"]
    # What a key may do and how long a body may be goes by the whole path.
    assert (key, scope["path"], scope["raw_path"], scope["root_path"]) == ("tweets", INFER, INFER.encode(), "")


async def test_body_over_its_limit_is_cut_just_beyond() -> None:
    handle = StandInHandle([WorkingReplica(START, LAST)])
    await _http(handle, body=b"x" * 50, config=HttpConfig(max_body_bytes=10))
    parts = handle.asked[-1][2][1]
    assert b"".join(parts[-1]) == b"x" * 11


async def test_answers_id_is_left_to_the_proxy_unless_it_is_another() -> None:
    def start(request_id: bytes) -> dict[str, Any]:
        return START | {"headers": [(b"x-request-id", request_id)]}

    for request_id, headers in ((b"r-1", []), (b"r-2", [(b"x-request-id", b"r-2")])):
        sent = await _http(StandInHandle([WorkingReplica(start(request_id), LAST)]))
        assert sent[0]["headers"] == headers


async def test_caller_who_goes_away_cancels_the_call() -> None:
    handle = StandInHandle([WorkingReplica(START, PIECE, LAST)])

    async def gone(message: dict[str, Any]) -> None:
        raise ConnectionResetError

    pieces = iter([{"type": "http.request", "body": b"{}", "more_body": False}])
    scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}

    async def receive() -> dict[str, Any]:
        return next(pieces)

    with pytest.raises(ConnectionResetError):
        await HttpDoor(Replicas(handle), HttpConfig())(scope, receive, gone)
    assert handle.num_cancelled == 1


async def test_whole_grpc_answer_is_repeated_until_it_is_whole() -> None:
    handle = StandInHandle([DyingReplica(MESSAGE), WorkingReplica(MESSAGE, WELL)])
    context = Context()
    answer = await GrpcDoor(Replicas(handle)).whole("Summarize", pb.SummarizeRequest(adapters=["a:2"]), context)
    assert answer.SerializeToString() == MESSAGE
    assert context.status is None
    method, key, arguments = handle.asked[-1]
    assert (method, key, arguments[2]) == ("grpc", "a", [("authorization", "Bearer key")])


async def test_grpc_refusal_has_status_words_and_trailers() -> None:
    refused = Ended(grpc.StatusCode.NOT_FOUND.value[0], "no such adapter", (("medley-code", "NOT_FOUND"),))
    context = Context()
    handle = StandInHandle([WorkingReplica(refused)])
    await GrpcDoor(Replicas(handle)).whole("Summarize", pb.SummarizeRequest(), context)
    assert (context.status, context.details) == (grpc.StatusCode.NOT_FOUND, "no such adapter")
    assert context.trailers == [("medley-code", "NOT_FOUND")]


async def test_grpc_stream_whose_replica_dies_ends_with_unavailable() -> None:
    handle = StandInHandle([DyingReplica(MESSAGE), WorkingReplica(MESSAGE, WELL)])
    context, got = Context(), []
    stream = GrpcDoor(Replicas(handle)).stream("StreamSummarize", pb.StreamSummarizeRequest(), context)
    got.append((await anext(stream)).data)
    with pytest.raises(EndedError):
        await anext(stream)
    assert got == [MESSAGE]
    assert context.status is grpc.StatusCode.UNAVAILABLE
