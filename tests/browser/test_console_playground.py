"""The playground: one text through several adapters at once."""

import pytest
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.conftest import scored
from tests.fixtures.chromium import Visit
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TEXT = "one two three four five"


async def open_playground(desk: Visit, server: RunningServer, name: str = "playground") -> Page:
    await desk.page.goto(f"{server.http}/console#/{name}")
    await expect(desk.page.locator(".lane")).to_have_count(2)
    return desk.page


def lane(page: Page, number: int) -> Locator:
    return page.locator(".lane").nth(number - 1)


async def test_text_runs_through_all_lanes_with_their_timings(desk: Visit, server: RunningServer) -> None:
    page = await open_playground(desk, server)
    await page.get_by_role("button", name="Add a lane").click()
    await lane(page, 2).get_by_label("Adapter").select_option("dialogsum:2")
    await lane(page, 3).get_by_label("Adapter").select_option("tweetsumm@canary")
    await lane(page, 3).get_by_label("Soft prompt").select_option("tone")
    await page.get_by_label("Text").fill(TEXT)
    await page.get_by_role("button", name="Run").click()
    for number, served in ((1, "the base"), (2, "dialogsum:2"), (3, "tweetsumm:1 + tone:1")):
        await expect(lane(page, number).locator(".answer")).to_contain_text("one")
        await expect(lane(page, number)).to_contain_text(f"Served by {served}")
        await expect(lane(page, number).locator(".timings")).to_contain_text("ms")
        await expect(lane(page, number).locator(".timings")).to_contain_text("stop")
    # The base gives the text back, adapters give it back turned: none has taken another's answer.
    await expect(lane(page, 1).locator(".answer")).to_have_text(TEXT)
    answers = [await lane(page, number).locator(".answer").inner_text() for number in (1, 2, 3)]
    assert len(set(answers)) == 3


async def test_reference_gives_scores(desk: Visit, server: RunningServer) -> None:
    await scored(server)
    page = await open_playground(desk, server)
    await page.get_by_label("Text").fill(TEXT)
    await page.get_by_label("Reference (optional)").fill(TEXT)
    await page.get_by_role("button", name="Run").click()
    await expect(lane(page, 1).locator(".timings")).to_contain_text("ROUGE-L100.0")


async def test_lane_that_fails_says_why_and_the_others_go_on(desk: Visit, server: RunningServer) -> None:
    page = await open_playground(desk, server)

    async def refuse(route: Route) -> None:
        error = {"message": "the queue is full", "code": "RESOURCE_EXHAUSTED", "request_id": "r-1"}
        is_base = '"adapters":[]' in (route.request.post_data or "")
        await (route.fulfill(status=429, json={"error": error}) if is_base else route.continue_())

    await page.route("**/v1/summarize", refuse)
    await page.get_by_label("Text").fill(TEXT)
    await page.get_by_role("button", name="Run").click()
    await expect(lane(page, 1).get_by_role("alert")).to_contain_text("The queue is full")
    await expect(lane(page, 1).get_by_role("alert")).to_contain_text("r-1")
    await expect(lane(page, 2)).to_contain_text("Served by dialogsum:1")
    desk.problems.clear()


async def test_lane_can_be_removed_and_one_always_stays(desk: Visit, server: RunningServer) -> None:
    page = await open_playground(desk, server)
    await page.get_by_role("button", name="Remove lane 1").click()
    await expect(page.locator(".lane")).to_have_count(1)
    await expect(lane(page, 1).get_by_label("Adapter")).to_have_value("dialogsum")
    await expect(page.get_by_role("button", name="Remove lane 1")).to_have_count(0)


async def test_link_to_an_adapter_opens_with_it(desk: Visit, server: RunningServer) -> None:
    page = await open_playground(desk, server, "playground/dialogsum%3A2")
    await expect(lane(page, 1).get_by_label("Adapter")).to_have_value("dialogsum:2")
