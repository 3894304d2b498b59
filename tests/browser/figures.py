"""Takes the pictures of docs/console.md: ``python -m tests.browser.figures``, with Chromium and the shipped adapters.

A server of its own on the native engine, with requests of its own. A day of scores and a rollout cannot be waited for:
those two pages are drawn from examples.
"""

import asyncio
import json
import tempfile
from pathlib import Path

import httpx
from playwright.async_api import Page

from tests.browser.test_console_pages import answer_from_examples
from tests.fixtures.chromium import DESKTOP, PHONE, chromium, visit
from tests.fixtures.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
LIBRARY = ROOT / "adapters" / "library"
LIVE_S = 60
NUM_CALLERS = 3
TEXT = (
    "#Person1#: Did you book the room for Friday?\n#Person2#: Not yet, the big one is taken. Shall I take the small "
    "one?\n#Person1#: Yes, please. We are only six.\n#Person2#: Good. I will send the invitation this afternoon."
)


async def main() -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(
            Path(folder),
            {"library": str(LIBRARY), "evaluation": {"warm_at_start": True}},
            engine="native",
            start_timeout_s=300,
        )
        try:
            await server.start()
            await _furnish(server)
            async with chromium() as browser:
                async with visit(browser, DESKTOP) as opened:
                    await _desktop(opened.page, server)
                async with visit(browser, DESKTOP, "dark") as opened:
                    await answer_from_examples(opened.page)
                    await _take(opened.page, server, "quality", "quality", "ROUGE-L over time")
                async with visit(browser, PHONE) as opened:
                    await _take(opened.page, server, "adapters", "phone", "dialogsum")
        finally:
            server.kill()


async def _furnish(server: ServerProcess) -> None:
    """Upload a second version of one adapter."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted((LIBRARY / "tweetsumm").iterdir())]
    async with httpx.AsyncClient(base_url=server.http, timeout=120) as client:
        answer = await client.post("/v1/adapters/dialogsum/versions", files=files, params={"tags": "candidate"})
        assert answer.status_code == 201, answer.text


async def _desktop(page: Page, server: ServerProcess) -> None:
    await answer_from_examples(page)
    await page.goto(f"{server.http}/console#/live")
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(_ask(server, number)) for number in range(NUM_CALLERS)]
        await asyncio.sleep(LIVE_S)
        await _shoot(page, "live")
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


async def _ask(server: ServerProcess, number: int) -> None:
    choices = [["dialogsum"], ["tweetsumm"], [], ["dialogsum", "dialogsum-prompt"]]
    async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
        turn = number
        while True:
            body = {"text": TEXT, "adapters": choices[turn % len(choices)], "max_new_tokens": 24 + 8 * (turn % 3)}
            await client.post("/v1/summarize", content=json.dumps(body), headers={"content-type": "application/json"})
            await asyncio.sleep(0.05 * (turn % 7))
            turn += 1


async def _take(page: Page, server: ServerProcess, name: str, figure: str, words: str) -> None:
    await page.goto(f"{server.http}/console#/{name}")
    await page.locator("main").get_by_text(words).first.wait_for()
    await page.wait_for_timeout(2500)
    await _shoot(page, figure)


async def _shoot(page: Page, figure: str) -> None:
    await page.screenshot(path=FIGURES / f"console-{figure}.png")


if __name__ == "__main__":
    asyncio.run(main())
