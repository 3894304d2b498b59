"""``medley serve`` on vLLM, from outside: bad adapters, lost clients, a killed engine, an orderly end.

One server for all tests, in this order, as a launch takes half a minute: the last ones end its engine, and then it.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.fixtures.server_process import ServerProcess

pytest.importorskip("vllm", reason="needs vLLM")
from tests.fixtures.causal_models import write_causal_loras, write_llama

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

BASE, LORA = "base", "qv-2"
NUM_SEQS = 4
LONG = 1500
SEEN_S = 10.0
# For a busy machine: a launch takes half a minute on an idle one.
PATIENCE_S = 300.0
PROMPT = list(range(5, 45))


class Server:
    """The server under test, and a client of it."""

    def __init__(self, process: ServerProcess, client: httpx.AsyncClient, adapters: Path) -> None:
        self.process, self.client, self.adapters = process, client, adapters

    async def upload(self, name: str, **changes: object) -> httpx.Response:
        """Upload the LoRA as ``name``, its configuration changed."""
        folder = self.adapters / LORA
        config = json.loads((folder / "adapter_config.json").read_text()) | changes
        weights = (folder / "adapter_model.safetensors").read_bytes()
        files = [
            ("files", ("adapter_config.json", json.dumps(config).encode())),
            ("files", ("adapter_model.safetensors", weights)),
        ]
        return await self.client.post(f"/v1/adapters/{name}/versions", files=files)

    async def complete(self, model: str = BASE, max_tokens: int = 8) -> httpx.Response:
        """Ask for one answer."""
        return await self.client.post("/v1/completions", json=body(model, max_tokens))

    async def events(
        self, model: str, max_tokens: int, may_read: asyncio.Event | None = None
    ) -> list[dict[str, object]]:
        """Stream one answer to its end; the last event is ``{}`` if that was ``[DONE]``."""
        async with self.client.stream("POST", "/v1/completions", json=body(model, max_tokens, stream=True)) as response:
            assert response.status_code == 200
            if may_read is not None:
                await may_read.wait()
            lines = [line async for line in response.aiter_lines()]
        told = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [{} if data == "[DONE]" else json.loads(data) for data in told]

    async def gauge(self, name: str) -> float:
        """Return a metric's value."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])

    async def running_streams(
        self, models: Sequence[str], max_tokens: int
    ) -> list[asyncio.Task[list[dict[str, object]]]]:
        """Begin to stream answers, and return once as many of them as fit are seen in the batch.

        None is read before: this process would see nothing else meanwhile. Where it gets no turn for so long that
        answers are over before it looks, it begins anew.
        """
        for _ in range(5):
            may_read = asyncio.Event()
            streams = [asyncio.create_task(self.events(model, max_tokens, may_read)) for model in models]
            with suppress(TimeoutError):
                async with asyncio.timeout(SEEN_S):
                    while await self.gauge("medley_requests_running") != min(len(models), NUM_SEQS):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                    may_read.set()
                    return streams
            may_read.set()
            await asyncio.gather(*streams)
        raise AssertionError("answers are always over before they are seen running")

    async def until_idle(self) -> None:
        """Wait until no request is in the batch."""
        async with asyncio.timeout(60):
            while await self.gauge("medley_requests_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def engine_pid(self) -> int:
        """Return vLLM's engine process, a child of the server."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        raise AssertionError("no engine process")


def body(model: str, max_tokens: int, *, stream: bool = False) -> dict[str, object]:
    return {"model": model, "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    base = write_llama(folder / BASE, seed=1)
    write_causal_loras(folder / "adapters", base, seed=2)
    engine = {
        "model": str(base),
        "max_num_seqs": NUM_SEQS,
        "max_model_len": LONG + 100,
        "max_loras": 2,
        "max_lora_rank": 16,
        "vllm": {"enforce_eager": True},
    }
    process = ServerProcess(folder / "run", {"engine": engine}, engine="vllm", start_timeout_s=PATIENCE_S)
    try:
        await process.start()
        async with httpx.AsyncClient(base_url=process.http, timeout=120) as client:
            running = Server(process, client, folder / "adapters")
            assert (await running.upload("good")).status_code == 201
            yield running
    finally:
        process.kill()


async def test_bad_adapters_are_refused_and_nobody_else_notices(server: Server) -> None:
    alone = (await server.complete()).json()["choices"][0]["text"]
    adapted = (await server.complete("good")).json()["choices"][0]["text"]
    assert alone != adapted
    long = await server.running_streams((BASE, "good"), 300)
    for number, changes in enumerate(({"use_dora": True}, {"r": 3}, {"peft_type": "VERA"})):
        refused = await server.upload(f"bad-{number}", **changes)
        assert refused.status_code in {400, 412}, refused.text
        assert (await server.complete(f"bad-{number}")).status_code == 404
    for events in await asyncio.gather(*long):
        assert events[-1] == {}
    assert (await server.complete()).json()["choices"][0]["text"] == alone
    assert (await server.complete("good")).json()["choices"][0]["text"] == adapted


async def test_disconnect_frees_the_sequences(server: Server) -> None:
    begun_s = time.monotonic()
    whole = await asyncio.gather(*(server.events(BASE, LONG) for _ in range(NUM_SEQS)))
    whole_s = time.monotonic() - begun_s
    assert all(events[-1] == {} for events in whole)
    leaving = await server.running_streams([BASE] * NUM_SEQS, LONG)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    begun_s = time.monotonic()
    # With every row still taken this would have to wait for one of them.
    assert (await server.complete()).status_code == 200
    assert time.monotonic() - begun_s < whole_s / 2
    await server.until_idle()


async def test_killed_engine_ends_every_request_once_and_comes_back(server: Server) -> None:
    before = [(await server.complete(model)).json()["choices"][0]["text"] for model in (BASE, "good")]
    streams = await server.running_streams(["good", BASE] * NUM_SEQS, LONG)
    whole = asyncio.create_task(server.complete(BASE, LONG))
    await asyncio.sleep(0)
    os.kill(server.engine_pid(), signal.SIGKILL)
    for events in await asyncio.wait_for(asyncio.gather(*streams), 30):
        ends = [event for event in events if "error" in event or event.get("choices", [{}])[0].get("finish_reason")]
        assert len(ends) == 1, ends
        assert ends[0]["error"]["code"] == "UNAVAILABLE"
    assert (await whole).status_code == 503
    assert (await server.complete()).status_code == 503
    assert (await server.client.get("/readyz")).status_code == 503
    assert (await server.client.get("/healthz")).status_code == 200
    async with asyncio.timeout(PATIENCE_S):
        while (await server.client.get("/readyz")).status_code != 200:
            assert (await server.client.get("/healthz")).status_code == 200
            await asyncio.sleep(0.2)
    assert [(await server.complete(model)).json()["choices"][0]["text"] for model in (BASE, "good")] == before


async def test_sigterm_lets_running_requests_end_and_leaves_no_process(server: Server) -> None:
    engine_pid = server.engine_pid()
    streams = await server.running_streams([BASE] * NUM_SEQS, LONG)
    assert await server.process.stop() == 0
    for events in await asyncio.gather(*streams):
        assert events[-1] == {}
        assert [event["choices"][0]["finish_reason"] for event in events[-3:] if event.get("choices")][-1] == "length"
    with pytest.raises(ProcessLookupError):
        os.kill(engine_pid, 0)
