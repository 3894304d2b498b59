"""A ``medley serve`` with traces and log lines on: what a collector gets and what is in its log, told by one id."""

import json
from pathlib import Path

import httpx
import pytest

from tests.fixtures.otlp_receiver import otlp_receiver
from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.slow

SECRET = "my-cat-is-called-Sauerbrunn"


async def test_served_request_is_in_the_collector_and_in_the_log_under_one_trace(tmp_path: Path) -> None:
    with otlp_receiver() as collector:
        settings = {
            "log": {"format": "json", "requests": True},
            # Longer than the test: what waits is sent when the server ends.
            "tracing": {"endpoint": collector.endpoint, "service_name": "medley-test", "send_every_s": 600},
        }
        server = ServerProcess(tmp_path, settings)
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
                answer = await client.post("/v1/summarize", json={"text": SECRET, "request_id": "served"})
            assert answer.status_code == 200
            assert collector.spans == []
            assert await server.stop() == 0
        finally:
            server.kill()
        (request,) = collector.named("request")
        assert request.attributes["medley.request_id"] == "served"
        assert collector.resources[0]["service.name"] == "medley-test"
        assert SECRET.encode() not in b"".join(collector.bodies)
    lines = [json.loads(line) for line in server.log_tail(1000).splitlines() if line.startswith("{")]
    (ended,) = [line for line in lines if line["message"] == "request ended"]
    assert (ended["request_id"], ended["trace_id"]) == ("served", request.trace_id)
    assert SECRET not in server.log_tail(1000)
