"""A browser and servers with something to show; everything here needs Chromium and is skipped without."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from adapters.registry import Change
from server.access.keys import KeyRing
from server.core.principal import Scope
from server.evaluation.evaluator import EvaluationConfig
from tests.fixtures.chromium import Visit, chromium, program, visit
from tests.fixtures.peft_files import Files, lora_files, prompt_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

# How many dots of a chart have the colour of its first line, as good as.
_DRAWN = """(index) => {
    const canvas = document.querySelectorAll(".plot canvas")[index];
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const wanted = getComputedStyle(document.documentElement).getPropertyValue("--line-1").trim();
    const rgb = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
    let num = 0;
    for (let at = 0; at < data.length; at += 4) {
        const isNear = rgb.every((value, i) => Math.abs(data[at + i] - value) < 12);
        if (data[at + 3] > 200 && isNear) num += 1;
    }
    return num;
}"""
# The scorer takes longer to load than a page; the few tests that need it wait.
COLD = EvaluationConfig(warm_at_start=False)
_SCORED_S = 180
_DRAWN_S = 20


@dataclass(frozen=True)
class Keyed:
    """A server that asks for keys, and one key for each name."""

    server: RunningServer
    ring: KeyRing
    tokens: Mapping[str, str]


async def upload(server: RunningServer, name: str, files: Files, token: str = "", **params: str) -> dict[str, Any]:
    """Upload a version past the browser."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=server.http, timeout=30, headers=headers) as client:
        parts = [("files", part) for part in files.items()]
        response = await client.post(f"/v1/adapters/{name}/versions", files=parts, params=params)
        assert response.status_code == 201, response.text
        return dict(response.json())


async def ask(server: RunningServer, num: int, **body: Any) -> None:
    """Ask for as many summaries past the browser, one after the other."""
    async with httpx.AsyncClient(base_url=server.http, timeout=_SCORED_S) as client:
        for _ in range(num):
            answer = await client.post("/v1/summarize", json={"text": "one two three", **body})
            assert answer.status_code == 200, answer.text


async def scored(server: RunningServer, label: str = "dialogsum:1") -> Mapping[str, float]:
    """Have answers of an adapter scored, and return their means; from then on the scorer is there for others."""
    await ask(server, 3, adapters=[label], references=["one two three"])
    async with httpx.AsyncClient(base_url=server.http) as client, asyncio.timeout(_SCORED_S):
        while True:
            for entry in (await client.get("/v1/evaluations")).json()["evaluations"]:
                if entry["adapters"] == label and entry["num_scored"] >= 3:
                    return dict(entry["means"])
            await asyncio.sleep(0.1)


async def drawn(page: Page, more_than: int) -> None:
    """Wait until the first chart shows more dots of its first line than that: a chart is drawn after it is there."""
    async with asyncio.timeout(_DRAWN_S):
        while await page.evaluate(_DRAWN, 0) <= more_than:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if program() is None:
        pytest.skip("Chromium is not installed")
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """A server without keys, with three adapters."""
    async with running_server(
        tmp_path_factory.mktemp("open"), fake_engine(step_time_s=0.001), evaluation=COLD
    ) as running:
        await upload(running, "dialogsum", lora_files(1), alias="stable", tags="nightly")
        await upload(running, "dialogsum", lora_files(2))
        await upload(running, "tweetsumm", lora_files(3), alias="canary")
        await upload(running, "tone", prompt_files())
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    data_dir = tmp_path_factory.mktemp("keyed")
    ring = KeyRing(f"sqlite:///{data_dir / 'registry.db'}")
    made = {"ops": {Scope.OPERATE, Scope.INFER}, "reader": {Scope.READ}, "app": {Scope.INFER}}
    tokens = {name: ring.create(name, scopes=scopes, change=Change("test"))[0] for name, scopes in made.items()}
    tokens["tenant"] = ring.create("tenant", scopes={Scope.OPERATE}, patterns=("team-*",), change=Change("test"))[0]
    try:
        async with running_server(data_dir, fake_engine(step_time_s=0.001), evaluation=COLD) as running:
            await upload(running, "dialogsum", lora_files(1), tokens["ops"], alias="stable")
            yield Keyed(running, ring, tokens)
    finally:
        ring.close()


@pytest_asyncio.fixture(loop_scope="module")
async def desk(browser: Browser) -> AsyncIterator[Visit]:
    """A page on a desktop; it must not have complained when the test is over, but for what the test cleared."""
    async with visit(browser) as opened:
        yield opened
        assert opened.problems == []
