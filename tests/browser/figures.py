"""Takes the pictures of docs/console.md: ``python -m tests.browser.figures``, with Chromium and the shipped adapters.

A server of its own on the native engine, with rollouts and callers of its own, whose references are those of the
shipped dialogues. Nothing is made up, so it takes ten minutes.
"""

import asyncio
import itertools
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Page

from loadtest.examples import SHIPPED_EXAMPLES, read_examples
from tests.fixtures.chromium import DESKTOP, PHONE, chromium, visit
from tests.fixtures.peft_files import Files
from tests.fixtures.real_rollouts import LIBRARY, cut, files_of, weakened
from tests.fixtures.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
LIVE_S = 60
LEAST_S, MOST_S = 420, 1500
NUM_CALLERS = 3
CHOICES = (["dialogsum"], ["minutes"], ["dialogsum"], ["minutes"], ["tweetsumm"], [], ["dialogsum", "dialogsum-prompt"])
SETTINGS = {
    "library": str(LIBRARY),
    "evaluation": {"warm_at_start": True},
    "rollouts": {"look_s": 0.5},
}


async def main() -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), SETTINGS, engine="native", start_timeout_s=300)
        try:
            await server.start()
            async with chromium() as browser:
                await _furnish(server)
                async with visit(browser, DESKTOP) as opened:
                    await _desktop(opened.page, server)
                async with visit(browser, DESKTOP, "dark") as opened:
                    await _quality(opened.page, server)
                async with visit(browser, PHONE) as opened:
                    await _take(opened.page, server, "adapters", "phone", "dialogsum")
                    await _take(opened.page, server, "rollouts", "phone-rollouts", "candidate is better")
        finally:
            server.kill()


async def _furnish(server: ServerProcess) -> None:
    """Begin a shadow that is worse than what it is beside, and a canary that is better."""
    whole, weak = files_of(LIBRARY / "dialogsum"), weakened(LIBRARY / "dialogsum", 0.02)
    async with httpx.AsyncClient(base_url=server.http, timeout=120) as client:
        await _upload(client, "dialogsum", weak, tags="candidate")
        await _upload(client, "minutes", weak, alias="stable")
        await _upload(client, "minutes", whole, tags="candidate")
        # Alone on two cores latencies are those of the callers, and say nothing of versions.
        terms = {"candidate": 2, "percent": 50, "max_latency_ratio": 1000}
        for name, more in (("dialogsum", {"mode": "shadow"}), ("minutes", {"automatic": False})):
            answer = await client.post(f"/v1/adapters/{name}/rollouts", json=terms | more)
            assert answer.status_code == 201, answer.text


async def _upload(client: httpx.AsyncClient, name: str, files: Files, **params: str) -> None:
    parts = [("files", part) for part in files.items()]
    answer = await client.post(f"/v1/adapters/{name}/versions", files=parts, params=params)
    assert answer.status_code == 201, answer.text


async def _desktop(page: Page, server: ServerProcess) -> None:
    await page.goto(f"{server.http}/console#/live")
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(_call(server, number)) for number in range(NUM_CALLERS)]
        begun_s = time.monotonic()
        await asyncio.sleep(LIVE_S)
        await _shoot(page, "live")
        while not await _is_decided(server) or time.monotonic() - begun_s < LEAST_S:
            assert time.monotonic() - begun_s < MOST_S, "the rollouts are still undecided"
            await asyncio.sleep(2)
        for caller in callers:
            caller.cancel()
    await _take(page, server, "adapters", "adapters", "dialogsum-topic")
    await _take(page, server, "adapters/dialogsum", "adapter", "candidate")
    await _take(page, server, "rollouts", "rollouts", "candidate is better")
    await page.goto(f"{server.http}/console#/playground")
    await page.get_by_role("button", name="Use an example").click()
    await page.get_by_role("button", name="Add a lane").click()
    for number, name in ((1, "dialogsum"), (2, "tweetsumm")):
        await page.locator(".lane").nth(number).get_by_label("Adapter").select_option(name)
    await page.get_by_role("button", name="Run").click()
    await page.locator(".lane .served").nth(2).wait_for()
    await page.wait_for_timeout(8000)
    await _shoot(page, "playground")


async def _quality(page: Page, server: ServerProcess) -> None:
    await page.goto(f"{server.http}/console#/quality")
    await page.get_by_label("Time", exact=True).select_option("60x20")
    await page.get_by_text("Mean of each minute").wait_for()
    await page.wait_for_timeout(2500)
    await _shoot(page, "quality")


async def _is_decided(server: ServerProcess) -> bool:
    async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
        answers = [await client.get(f"/v1/adapters/{name}/rollouts") for name in ("dialogsum", "minutes")]
    shadow, canary = (answer.json()["rollouts"][0] for answer in answers)
    return bool(shadow["state"] != "running" and canary["verdict"] == "BETTER")


async def _call(server: ServerProcess, number: int) -> None:
    draws, examples = random.Random(number), read_examples(SHIPPED_EXAMPLES)
    async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
        for turn in itertools.count(number):
            example = draws.choice(examples)
            body: dict[str, Any] = {
                "text": cut(example, draws),
                "adapters": CHOICES[turn % len(CHOICES)],
                "references": example.summaries,
                "max_new_tokens": 24 + 8 * (turn % 3),
            }
            await client.post("/v1/summarize", json=body)
            await asyncio.sleep(0.05 * (turn % 7))


async def _take(page: Page, server: ServerProcess, name: str, figure: str, words: str) -> None:
    await page.goto(f"{server.http}/console#/{name}")
    await page.locator("main").get_by_text(words).first.wait_for()
    await page.wait_for_timeout(2500)
    await _shoot(page, figure)


async def _shoot(page: Page, figure: str) -> None:
    await page.screenshot(path=FIGURES / f"console-{figure}.png")


if __name__ == "__main__":
    asyncio.run(main())
