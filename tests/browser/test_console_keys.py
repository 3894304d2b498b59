"""Signing in to the console, and what a key may not do."""

import asyncio

import httpx
import pytest
from playwright.async_api import Page, expect

from adapters.registry import Change
from server.core.principal import Scope
from tests.browser.conftest import Keyed
from tests.fixtures.chromium import Visit
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

UNAUTHORIZED = "error: Failed to load resource: the server responded with a status of 401 (Unauthorized)"


async def sign_in(page: Page, keyed: Keyed, name: str, page_name: str = "adapters") -> None:
    await page.goto(f"{keyed.server.http}/console#/{page_name}")
    await page.get_by_label("API key").fill(keyed.tokens[name])
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


async def known_to_the_server(keyed: Keyed, token: str) -> None:
    """Wait until the server has seen a key that was made beside it."""
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=keyed.server.http, headers=headers) as client, asyncio.timeout(10):
        while (await client.get("/v1/keys/self")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_server_without_keys_says_so_and_goes_on(desk: Visit, server: RunningServer) -> None:
    await desk.page.goto(f"{server.http}/console")
    await expect(desk.page.get_by_text("no keys")).to_be_visible()
    await expect(desk.page.get_by_role("link", name="dialogsum")).to_be_visible()


async def test_sign_in_shows_whose_key_it_is_and_lasts_for_the_tab(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    await sign_in(page, keyed, "ops")
    await expect(page.get_by_text("ops", exact=True)).to_be_visible()
    await expect(page.get_by_role("link", name="dialogsum")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("link", name="dialogsum")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("API key")).to_be_focused()
    assert await page.evaluate("sessionStorage.length + localStorage.length") == 0
    await page.reload()
    await expect(page.get_by_label("API key")).to_be_visible()


async def test_sign_in_page_is_accessible(desk: Visit, keyed: Keyed) -> None:
    await desk.page.goto(f"{keyed.server.http}/console")
    await expect(desk.page.get_by_label("API key")).to_be_focused()
    assert await desk.grave_findings() == []


async def test_wrong_key_is_refused_in_the_servers_words_and_not_kept(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    await page.goto(f"{keyed.server.http}/console")
    await page.get_by_label("API key").fill("mdl_" + "0" * 61)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("The API key is not valid.")
    assert await desk.grave_findings() == []
    assert await page.evaluate("sessionStorage.length") == 0
    assert desk.problems == [UNAUTHORIZED]
    desk.problems.clear()
    await page.get_by_label("API key").fill(keyed.tokens["ops"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name="dialogsum")).to_be_visible()


async def test_key_that_is_revoked_meanwhile_signs_out_with_the_reason(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    token, key = keyed.ring.create("brief", scopes={Scope.READ}, change=Change("test"))
    await known_to_the_server(keyed, token)
    await page.goto(f"{keyed.server.http}/console")
    await page.get_by_label("API key").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name="dialogsum")).to_be_visible()
    keyed.ring.revoke(key.key_id, Change("test"))
    await expect(page.get_by_role("alert")).to_contain_text("The API key is revoked. Sign in again.", timeout=15_000)
    assert set(desk.problems) == {UNAUTHORIZED}
    desk.problems.clear()


async def test_key_that_may_only_read_changes_nothing_and_says_why(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    changes: list[str] = []
    page.on("request", lambda request: changes.append(request.url) if request.method != "GET" else None)
    await sign_in(page, keyed, "reader", "adapters/dialogsum")
    for name in ("Promote version 1", "Delete version 1", "Roll back…"):
        button = page.get_by_role("button", name=name)
        await expect(button).to_have_attribute("aria-disabled", "true")
        await expect(button).to_have_accessible_description("This needs a key with the scope operate.")
        await button.click(force=True)
        await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.goto(f"{keyed.server.http}/console#/playground")
    await expect(page.locator("main").get_by_text("This needs a key with the scope infer.").first).to_be_visible()
    await page.goto(f"{keyed.server.http}/console#/upload")
    await expect(page.locator("main").get_by_text("This needs a key with the scope operate.").first).to_be_visible()
    assert changes == []


async def test_key_that_may_only_infer_is_not_shown_what_it_may_not_read(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    await sign_in(page, keyed, "app")
    for name in ("adapters", "live", "quality", "rollouts"):
        await page.goto(f"{keyed.server.http}/console#/{name}")
        await expect(page.locator("main").get_by_text("This needs a key with the scope read.").first).to_be_visible()
    await page.goto(f"{keyed.server.http}/console#/playground")
    await page.get_by_label("Text").fill("one two three")
    await page.get_by_role("button", name="Run").click()
    await expect(page.locator(".lane .answer").first).to_have_text("one two three")


async def test_key_of_a_tenant_sees_its_own_and_no_figures_of_all(desk: Visit, keyed: Keyed) -> None:
    page = desk.page
    await sign_in(page, keyed, "tenant")
    await expect(page.get_by_text("No adapters yet")).to_be_visible()
    await page.goto(f"{keyed.server.http}/console#/live")
    await expect(page.locator("main").get_by_text("This needs a key for all adapters.").first).to_be_visible()
