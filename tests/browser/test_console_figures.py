"""Live figures and quality in the console: what is drawn is what the server measured."""

import re
import time

import pytest
from playwright.async_api import Locator, Page, Route, expect
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tests.browser.conftest import ask, drawn, scored
from tests.fixtures import console_answers
from tests.fixtures.chromium import Visit
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

SOME_RATE = re.compile(r"[0-9.,]*[1-9][0-9.,]*/s")


def tile(page: Page, title: str) -> Locator:
    return page.locator(".tile").filter(has_text=title).locator(".tile-value")


async def test_live_page_shows_the_traffic_of_now(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    await page.goto(f"{server.http}/console#/live")
    await expect(page.locator(".tile")).to_have_count(6)
    await ask(server, 30, adapters=["dialogsum"])
    await expect(page.locator(".tile").filter(has_text="First token")).to_contain_text("ms")
    for title in ("Requests", "Tokens"):
        await expect(tile(page, title)).to_have_text(SOME_RATE)
    await expect(tile(page, "Failed")).to_have_text("0 %")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="dialogsum", exact=True))
    await expect(row).to_contain_text("/s")
    await drawn(page, 20)
    await page.get_by_text("Requests as a table").click()
    await expect(page.get_by_role("region", name="Requests").locator("tbody tr")).not_to_have_count(0)


async def test_live_page_of_one_adapter_leaves_the_others_out(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    await ask(server, 1)
    await page.goto(f"{server.http}/console#/live")
    await ask(server, 20, adapters=["tweetsumm"])
    await page.get_by_label("Adapters", exact=True).select_option("tweetsumm")
    await expect(tile(page, "Requests")).to_have_text(SOME_RATE)
    await page.get_by_label("Adapters", exact=True).select_option("base")
    # They stay in the figures of all for ten seconds.
    await expect(tile(page, "Requests")).to_have_text("0/s", timeout=4000)


async def test_quantiles_and_rates_are_those_of_the_histograms(desk: Visit, server: RunningServer) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h", "Text.", ("who",), buckets=(0.1, 0.2, 0.4, 0.8), registry=registry)
    labels = histogram.labels(who='a "b"\\')
    labels.observe(0.05)
    before = generate_latest(registry).decode()
    for value in (0.15, 0.15, 0.3, 0.3, 0.3, 0.3, 0.7, 0.7, 0.7, 0.9):
        labels.observe(value)
    after = generate_latest(registry).decode()
    await desk.page.goto(f"{server.http}/console")
    found = await desk.page.evaluate(
        """async ([before, after]) => {
            const m = await import("/console/metrics.js");
            const [old, now] = [before, after].map((text) => m.histogram(m.parse(text), "h"));
            const between = (from, to, q) => m.quantile(q, m.histogramGrowth(from, to));
            return {
                grown: [0.1, 0.5, 0.9, 0.99].map((q) => between(old, now, q)),
                none: between(now, now, 0.5),
                restarted: between(now, old, 0.5),
                growth: [m.growth(5, 8), m.growth(8, 3)],
                who: m.parse(after).get("h_count")[0].labels.who,
            };
        }""",
        [before, after],
    )
    # By hand: ten values, two in (0.1, 0.2], four in (0.2, 0.4], three in (0.4, 0.8], one above.
    assert found["grown"] == pytest.approx([0.15, 0.35, 0.8, 0.8])
    assert (found["none"], found["restarted"]) == (None, pytest.approx(0.05))
    assert found["growth"] == [3, 3]
    assert found["who"] == 'a "b"\\'


async def test_quality_without_scores_says_how_to_get_some(desk: Visit, server: RunningServer) -> None:
    async def none(route: Route) -> None:
        await route.fulfill(json={"evaluations": []})

    await desk.page.route("**/v1/evaluations?*", none)
    await desk.page.goto(f"{server.http}/console#/quality")
    await expect(desk.page.get_by_text("Nothing has been scored yet")).to_be_visible()


async def test_quality_shows_what_was_scored_on_this_server(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    means = await scored(server)
    await page.goto(f"{server.http}/console#/quality")
    row = page.get_by_role("row").filter(has_text="dialogsum:1")
    await expect(row).to_contain_text(f"{means['rougeL']:.1f}")
    await page.get_by_label("Measure").select_option("rouge2")
    await expect(row).to_contain_text(f"{means['rouge2']:.1f}")


async def test_quality_draws_scores_over_time_with_intervals(desk: Visit, server: RunningServer) -> None:
    page = desk.page
    asked: list[str] = []

    async def answer(route: Route) -> None:
        asked.append(route.request.url)
        await route.fulfill(json=console_answers.evaluations(time.time()))

    await page.route("**/v1/evaluations?*", answer)
    await page.goto(f"{server.http}/console#/quality")
    await expect(page.get_by_role("img", name="ROUGE-L over time")).to_be_visible()
    await drawn(page, 300)
    await expect(page.locator(".legend")).to_contain_text("dialogsum:1")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="dialogsum:2"))
    await expect(row).to_contain_text("26.1 to 27.9")
    drifted = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="tweetsumm:1"))
    await expect(drifted).to_contain_text("prompt tokens")
    await page.get_by_label("Draw dialogsum:2").uncheck()
    await expect(page.locator(".legend")).not_to_contain_text("dialogsum:2")
    assert asked[-1].endswith("?window_s=3600&num_windows=24")
    async with page.expect_response("**/v1/evaluations?window_s=300&num_windows=24"):
        await page.get_by_label("Time", exact=True).select_option("300x24")
    await expect(page.get_by_role("img", name="ROUGE-L over time")).to_be_visible()
    await page.get_by_text("ROUGE-L over time as a table").click()
    table = page.get_by_role("region", name="ROUGE-L over time")
    await expect(table.locator("tbody tr")).to_have_count(24)
