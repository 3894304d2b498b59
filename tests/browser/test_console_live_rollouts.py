"""Rollouts and quality in the console on a server that really rolls out: nothing here is made up.

Two versions are uploaded and a rollout is started in the page, requests bring references, and the page shows what the
server makes of them.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from server.service.rollouts import RolloutConfig
from tests.browser.conftest import drawn
from tests.browser.test_console_upload import choose, open_upload
from tests.fixtures.chromium import PHONE, Visit, visit
from tests.fixtures.peft_files import lora_files
from tests.fixtures.rollout_story import NAME, RolloutStory
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PERIOD = {"window_s": 60, "num_windows": 20}
_NUM_CALLS = 48
_MAX_NUM_CALLS = 1600
# The page asks every five seconds.
_SEEN_MS = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """A server without any adapter yet."""
    engine = fake_engine(max_num_seqs=32, max_num_waiting=256)
    folder = tmp_path_factory.mktemp("rollouts")
    async with running_server(folder, engine, rollouts=RolloutConfig(look_s=0.05)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(browser: Browser, server: RunningServer) -> AsyncIterator[RolloutStory]:
    """Two versions, uploaded in the page."""
    async with visit(browser) as opened:
        for seed, alias in ((1, "stable"), (2, "")):
            page = await open_upload(opened, server)
            await choose(page, lora_files(seed))
            await page.get_by_label("Name").fill(NAME)
            await page.get_by_label("Alias (optional)").fill(alias)
            await page.locator("form").get_by_role("button", name="Upload", exact=True).click()
            await expect(page.get_by_text(f"{NAME}:{seed} is ready", exact=True)).to_be_visible()
        assert opened.problems == []
    async with httpx.AsyncClient(base_url=server.http, timeout=60) as client:
        yield RolloutStory(client)


async def start(page: Page, server: RunningServer, candidate: int, *, is_automatic: bool) -> None:
    """Start a canary at 50 % of the requests."""
    await page.goto(f"{server.http}/console#/rollouts")
    await page.get_by_role("button", name="Start a rollout…").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Candidate").select_option(str(candidate))
    await dialog.get_by_label("Percent of the traffic").fill("50")
    await dialog.get_by_label("Promote or roll back by itself").set_checked(is_automatic)
    await dialog.get_by_text("Limits").click()
    # The fake engine's latencies are those of a busy machine and say nothing of versions.
    await dialog.get_by_label("Largest p95 latency ratio").fill("1000")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog).to_have_count(0)


def newest(page: Page) -> Locator:
    return page.get_by_role("article", name=f"Rollout of {NAME}").first


async def calls(story: RolloutStory, best: int) -> None:
    for _ in range(_NUM_CALLS // 16):
        await asyncio.gather(*(story.call(best) for _ in range(16)))


async def rollout_of(story: RolloutStory) -> dict[str, Any]:
    found: dict[str, Any] = (await story.client.get(f"/v1/adapters/{NAME}/rollouts")).json()["rollouts"][0]
    return found


async def all_scored(story: RolloutStory) -> None:
    """Wait until every answer that brought a reference has its scores: they come after it."""
    async with asyncio.timeout(60):
        while True:
            entries = (await story.client.get("/v1/evaluations", params=PERIOD)).json()["evaluations"]
            if sum(entry["num_scored"] for entry in entries) == story.served.total():
                return
            await asyncio.sleep(0.1)


async def end(page: Page, button: str) -> None:
    await newest(page).get_by_role("button", name=f"{button}…").click()
    await page.get_by_role("dialog").get_by_role("button", name=button).click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_canary_is_started_watched_and_rolled_back_in_the_page(
    desk: Visit, server: RunningServer, story: RolloutStory
) -> None:
    page = desk.page
    await start(page, server, 2, is_automatic=False)
    await expect(newest(page).get_by_role("heading")).to_have_text(f"{NAME}@stable: version 1 → 2")
    await calls(story, best=1)
    await all_scored(story)
    arms = (await rollout_of(story))["arms"]
    assert arms["stable"]["num_scored"] + arms["candidate"]["num_scored"] == _NUM_CALLS
    for arm, figures in arms.items():
        row = newest(page).get_by_role("row").filter(has=page.get_by_role("rowheader", name=arm))
        for words in (figures["num_requests"], figures["num_scored"], f"{figures['mean']:.1f}"):
            await expect(row).to_contain_text(str(words), timeout=_SEEN_MS)
    assert await desk.grave_findings() == []
    await end(page, "Roll back")
    await expect(newest(page).locator(".badge").first).to_have_text("rolled back")
    assert (await rollout_of(story))["state"] == "rolled_back"
    assert await story.stable() == 1


async def test_canary_is_promoted_in_the_page_and_serves(
    desk: Visit, server: RunningServer, story: RolloutStory
) -> None:
    page = desk.page
    await start(page, server, 2, is_automatic=False)
    await end(page, "Promote")
    await expect(newest(page).locator(".badge").first).to_have_text("promoted")
    assert await story.stable() == 2
    assert (await story.ask("hello there"))["adapters"][0]["version"] == 2
    await newest(page).get_by_role("link", name=NAME).click()
    await expect(page.get_by_role("heading", name=NAME, level=1)).to_be_visible()
    served = page.locator("dl div").filter(has_text="@stable")
    await expect(served).to_contain_text("version 2")


async def test_better_candidate_is_seen_to_be_promoted_by_itself(
    desk: Visit, server: RunningServer, story: RolloutStory
) -> None:
    page = desk.page
    await story.client.put(f"/v1/adapters/{NAME}/aliases/stable", json={"version": 1})
    await start(page, server, 2, is_automatic=True)
    begun = await rollout_of(story)
    await story.call_until_ended(begun["id"], best=2, max_num_calls=_MAX_NUM_CALLS)
    await expect(newest(page).locator(".badge")).to_have_text(["promoted", "candidate is better"], timeout=_SEEN_MS)
    await newest(page).get_by_text(" decisions").click()
    last = newest(page).get_by_role("listitem").last
    await expect(last).to_contain_text("promote by server")
    await expect(last).to_contain_text('"arms"')
    assert await story.stable() == 2
    assert await desk.grave_findings() == []


async def test_quality_draws_what_both_versions_really_scored(
    desk: Visit, server: RunningServer, story: RolloutStory
) -> None:
    page = desk.page
    for best in (1, 2):
        await calls(story, best)
    await all_scored(story)
    await page.goto(f"{server.http}/console#/quality")
    await page.get_by_label("Time", exact=True).select_option("60x20")
    answer = await story.client.get("/v1/evaluations", params=PERIOD)
    for entry in answer.json()["evaluations"]:
        if entry["num_scored"] == 0:
            continue
        figures = entry["metrics"]["rougeL"]
        assert figures["low"] < figures["mean"] < figures["high"]
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=entry["adapters"]))
        await expect(row).to_contain_text(f"{figures['low']:.1f} to {figures['high']:.1f}")
        await expect(page.locator(".legend")).to_contain_text(entry["adapters"])
        await page.get_by_text("ROUGE-L over time as a table").click()
        table = page.get_by_role("region", name="ROUGE-L over time")
        window = next(window for window in entry["windows"] if window["num_scored"])
        words = (window[part]["rougeL"] for part in ("means", "low", "high"))
        mean, low, high = (f"{value:.1f}" for value in words)
        await expect(table).to_contain_text(f"{mean} ({low} to {high})")
        await page.get_by_text("ROUGE-L over time as a table").click()
    # The other line may cover it.
    await page.get_by_label(f"Draw {NAME}:2").uncheck()
    await drawn(page, 10)
    assert await desk.grave_findings() == []


async def test_real_rollouts_and_scores_fit_a_phone(
    browser: Browser, server: RunningServer, story: RolloutStory
) -> None:
    await story.client.put(f"/v1/adapters/{NAME}/aliases/stable", json={"version": 1})
    begun = await story.begin(2, percent=50)
    await story.call_until_ended(begun["id"], best=2, max_num_calls=_MAX_NUM_CALLS)
    async with visit(browser, PHONE, "dark") as opened:
        for name, words in (("rollouts", "candidate is better"), ("quality", "ROUGE-L over time")):
            await opened.page.goto(f"{server.http}/console#/{name}")
            await expect(opened.page.locator("main").get_by_text(words).first).to_be_visible()
            assert await opened.grave_findings() == [], name
            assert not await opened.is_wider_than_the_screen(), name
        assert opened.problems == []
