"""SIGTERM of a deployment: what it has accepted is answered whole, as by one server."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from httpx import AsyncClient

from tests.e2e.test_ray import PATIENCE_S, START_S, RayServerProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's are its own.
    pytest.mark.filterwarnings("default"),
]

_ASKED = {"text": "x" * 120, "max_new_tokens": 128}
"""Takes six seconds."""


async def test_sigterm_lets_running_answers_and_streams_end(tmp_path: Path) -> None:
    settings = {
        "engine": {"name": "fake", "step_time_s": 0.05},
        "access": {"allow_open": True},
        "ray": {"num_replicas": 1, "num_cpus": 0.1},
    }
    server = RayServerProcess(tmp_path, settings, start_timeout_s=START_S)
    try:
        await server.start()
        async with AsyncClient(base_url=server.http, timeout=PATIENCE_S) as client:
            whole = asyncio.create_task(client.post("/v1/summarize", json=_ASKED))
            async with client.stream("POST", "/v1/summarize", json=_ASKED | {"stream": True}) as stream:
                lines = stream.aiter_lines()
                assert (await anext(lines)).startswith("data:")
                stopping = asyncio.create_task(server.stop())
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert (await whole).json()["summary"] == _ASKED["text"]
        assert await stopping == 0
    finally:
        server.kill()


def test_deployment_that_never_began_is_taken_down() -> None:
    # In a process of its own, as a process has one cluster.
    steps = "from server.runtime import ray_local as r; from server.settings import Settings as S; s = S()"
    subprocess.run([sys.executable, "-c", f"{steps}; r.join(s); r.take_down(s)"], check=True, timeout=START_S)
