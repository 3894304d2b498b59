"""Looking at adapters and changing them in the console, with the mouse and with the keyboard alone."""

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.browser.conftest import upload
from tests.fixtures.chromium import Visit
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

CONFLICT = "error: Failed to load resource: the server responded with a status of 412 (Precondition Failed)"


@pytest_asyncio.fixture(loop_scope="module")
async def name(server: RunningServer, request: pytest.FixtureRequest) -> str:
    """An adapter of this test's own with two versions, the first of them stable."""
    own = "own-" + request.node.name.removeprefix("test_")[:24].replace("_", "-").rstrip("-")
    await upload(server, own, lora_files(11), alias="stable")
    await upload(server, own, lora_files(12))
    return own


async def aliases(server: RunningServer, name: str) -> dict[str, int]:
    async with httpx.AsyncClient(base_url=server.http) as client:
        return dict((await client.get(f"/v1/adapters/{name}")).json()["aliases"])


async def tab_to(page: Page, what: str, at_most: int = 40) -> None:
    """Press Tab until the focus is on something of this accessible name."""
    for _ in range(at_most):
        await page.keyboard.press("Tab")
        words = await page.evaluate(
            "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''"
        )
        if words.strip() == what:
            return
    pytest.fail(f"no way to {what!r} by {at_most} tabs")


async def test_list_shows_what_each_serves_and_where_it_lies(desk: Visit, server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.http) as client:
        for _ in range(3):
            answer = await client.post("/v1/summarize", json={"text": "one two", "adapters": ["tweetsumm"]})
            assert answer.status_code == 200
    await desk.page.goto(f"{server.http}/console")
    row = desk.page.get_by_role("row").filter(has=desk.page.get_by_role("rowheader", name="tweetsumm"))
    await expect(row).to_contain_text("LoRA, rank 2")
    await expect(row).to_contain_text("newest → 1")
    await expect(row).to_contain_text("canary → 1")
    await expect(row.locator(".dot.good")).to_have_text("v1")
    await expect(row.locator(".meter-words")).to_contain_text("3")
    other = desk.page.get_by_role("row").filter(has=desk.page.get_by_role("rowheader", name="tone"))
    await expect(other).to_contain_text("Soft prompt, 3 tokens")
    await expect(other).to_contain_text("not loaded")


async def test_list_finds_by_name_and_tag(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console")
    find = page.get_by_label("Find an adapter")
    for words, found in (("night", ["dialogsum"]), ("ton", ["tone"]), ("nothing-like-it", [])):
        await find.fill(words)
        await expect(page.locator("a.name")).to_have_text(found)
    await expect(page.get_by_text("Nothing matches")).to_be_visible()


async def test_promote_and_roll_back_move_the_alias(desk: Visit, server: RunningServer, name: str) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console#/adapters/{name}")
    await page.get_by_role("button", name="Promote version 2").click()
    await expect(page.get_by_role("dialog")).to_contain_text("version 1 → version 2")
    await page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    await expect(page.get_by_role("status").filter(has_text=f"{name}@stable is version 2 now.")).to_be_visible()
    assert await aliases(server, name) == {"stable": 2}
    await expect(page.locator(".facts")).to_contain_text("version 2")
    await page.get_by_role("button", name="Roll back…").click()
    await page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    await expect(page.get_by_role("status").filter(has_text=f"{name}@stable is version 1 again.")).to_be_visible()
    assert await aliases(server, name) == {"stable": 1}
    await expect(page.locator(".events")).to_contain_text("rollback")


async def test_promote_to_a_new_alias_makes_it(desk: Visit, server: RunningServer, name: str) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console#/adapters/{name}")
    await page.get_by_role("button", name="Promote version 2").click()
    await page.get_by_label("Alias").fill("canary")
    await expect(page.get_by_role("dialog")).to_contain_text("new → version 2")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert await aliases(server, name) == {"stable": 1, "canary": 2}


async def test_delete_that_is_refused_stays_open_with_the_servers_words(
    desk: Visit, server: RunningServer, name: str
) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console#/adapters/{name}")
    await page.get_by_role("button", name="Delete version 1").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("@stable points at it.")
    await dialog.get_by_role("button", name="Delete").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("FAILED_PRECONDITION")
    assert desk.problems == [CONFLICT]
    desk.problems.clear()
    await dialog.get_by_label("Force").check()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("status").filter(has_text=f"{name}:1 is retired.")).to_be_visible()
    assert await aliases(server, name) == {}
    await page.get_by_label("Show 1 retired").check()
    await expect(page.get_by_text("deleted by anonymous", exact=True)).to_be_visible()


async def test_adapter_that_does_not_exist_is_said_to_be_none(desk: Visit, server: RunningServer) -> None:
    await desk.page.goto(f"{server.http}/console#/adapters/nowhere")
    await expect(desk.page.get_by_role("alert").first).to_contain_text("NOT_FOUND")
    desk.problems.clear()


async def test_promotion_by_keyboard_alone(desk: Visit, server: RunningServer, name: str) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console")
    await expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    await expect(page.get_by_role("heading", name="Adapters", level=1)).to_be_focused()
    await tab_to(page, name)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=name, level=1)).to_be_focused()
    await tab_to(page, "Promote version 2")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Alias")).to_be_focused()
    await tab_to(page, "Promote")
    await page.keyboard.press("Space")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert await aliases(server, name) == {"stable": 2}


async def test_skip_link_leads_past_the_navigation(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console#/live")
    await expect(page.get_by_role("heading", name="Live", level=1)).to_be_focused()
    await page.get_by_role("link", name="Skip to the page").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Live", level=1)).to_be_focused()
    assert page.url.endswith("#/live")
