"""Rollouts in the console: looked at, started, ended by hand. The server's answers are made up here.

What a server really answers is in ``test_console_live_rollouts.py``.
"""

import asyncio
import json
import time
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.fixtures import console_answers
from tests.fixtures.chromium import Visit
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

NOT_FOUND = "error: Failed to load resource: the server responded with a status of 404 (Not Found)"
CONFLICT = "error: Failed to load resource: the server responded with a status of 412 (Precondition Failed)"


class Rollouts:
    """The rollouts of one adapter as a server keeps them."""

    def __init__(self) -> None:
        self.kept = [console_answers.rollout(time.time()), console_answers.ended_rollout(time.time())]
        self.sent: list[tuple[str, Any]] = []
        self.refusal: dict[str, str] | None = None

    async def answer(self, route: Route) -> None:
        request = route.request
        if request.method == "GET":
            await route.fulfill(json={"rollouts": self.kept if "/dialogsum/" in request.url else []})
            return
        assert request.headers["idempotency-key"]
        self.sent.append((request.url.partition("/v1/")[2], json.loads(request.post_data or "null")))
        if self.refusal is not None:
            await route.fulfill(status=412, json={"error": self.refusal})
            return
        ended = {"promote": "promoted", "rollback": "rolled_back"}.get(request.url.rpartition("/")[2])
        if ended:
            self.kept[0] = self.kept[0] | {"state": ended, "ended_s": time.time()}
        await route.fulfill(json=self.kept[0], status=200 if ended else 201)


async def open_rollouts(desk: Visit, server: RunningServer, rollouts: Rollouts) -> Page:
    await desk.page.route("**/v1/adapters/*/rollouts", rollouts.answer)
    await desk.page.route("**/v1/adapters/*/rollouts/**", rollouts.answer)
    await desk.page.goto(f"{server.http}/console#/rollouts")
    await expect(desk.page.get_by_role("article")).to_have_count(2)
    return desk.page


async def test_list_shows_arms_verdict_and_decisions(desk: Visit, server: RunningServer) -> None:
    page = await open_rollouts(desk, server, Rollouts())
    running = page.get_by_role("article").first
    await expect(running.get_by_role("heading")).to_have_text("dialogsum@stable: version 1 → 2")
    await expect(running).to_contain_text("candidate is better")
    candidate = running.get_by_role("row").filter(has=page.get_by_role("rowheader", name="candidate"))
    for words in ("98", "49", "27.3", "1.0 %", "219 ms"):
        await expect(candidate).to_contain_text(words)
    await running.get_by_text("2 decisions").click()
    await expect(running.get_by_role("listitem").nth(1)).to_contain_text('"difference":3.2')
    ended = page.get_by_role("article").nth(1)
    await expect(ended).to_contain_text("rolled back")
    await expect(ended.get_by_role("button")).to_have_count(0)


@pytest.mark.parametrize(
    ("button", "path", "state"),
    [("Promote", "promote", "promoted"), ("Roll back", "rollback", "rolled back")],
)
async def test_rollout_is_ended_by_hand(desk: Visit, server: RunningServer, button: str, path: str, state: str) -> None:
    rollouts = Rollouts()
    page = await open_rollouts(desk, server, rollouts)
    await page.get_by_role("button", name=f"{button}…").click()
    await page.get_by_role("dialog").get_by_role("button", name=button).click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert rollouts.sent == [(f"adapters/dialogsum/rollouts/ro_1/{path}", None)]
    await expect(page.get_by_role("article").first.locator(".badge").first).to_have_text(state)


async def test_promotion_that_the_scores_do_not_ask_for_is_warned_of(desk: Visit, server: RunningServer) -> None:
    rollouts = Rollouts()
    rollouts.kept[0] = rollouts.kept[0] | {"verdict": "INCONCLUSIVE"}
    page = await open_rollouts(desk, server, rollouts)
    await page.get_by_role("button", name="Promote…").click()
    await expect(page.get_by_role("dialog")).to_contain_text("The scores do not say that the candidate is better.")


async def test_start_sends_what_was_chosen(desk: Visit, server: RunningServer) -> None:
    rollouts = Rollouts()
    page = await open_rollouts(desk, server, rollouts)
    await page.get_by_role("button", name="Start a rollout…").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Candidate")).to_have_value("2")
    await dialog.get_by_label("Mode").select_option("shadow")
    await dialog.get_by_label("Percent of the traffic").fill("25")
    await dialog.get_by_label("Promote or roll back by itself").uncheck()
    await dialog.get_by_text("Limits").click()
    await dialog.get_by_label("Largest p95 latency ratio").fill("1.5")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog).to_have_count(0)
    body = {"alias": "stable", "candidate": 2, "mode": "shadow", "percent": 25, "metric": "rougeL", "automatic": False}
    assert rollouts.sent == [("adapters/dialogsum/rollouts", body | {"max_latency_ratio": 1.5})]


async def test_start_waits_until_the_adapters_are_there(desk: Visit, server: RunningServer) -> None:
    asked = asyncio.Event()

    async def late(route: Route) -> None:
        await asked.wait()
        await route.continue_()

    await desk.page.route("**/v1/adapters", late)
    await desk.page.goto(f"{server.http}/console#/rollouts")
    button = desk.page.get_by_role("button", name="Start a rollout…")
    await expect(button).to_have_accessible_description("The adapters are not here yet.")
    await button.click(force=True)
    await expect(desk.page.get_by_role("dialog")).to_have_count(0)
    asked.set()
    await button.click()
    await expect(desk.page.get_by_role("dialog")).to_be_visible()


async def test_start_that_is_refused_stays_open_with_the_servers_words(desk: Visit, server: RunningServer) -> None:
    rollouts = Rollouts()
    rollouts.refusal = {"message": "the alias has a rollout", "code": "FAILED_PRECONDITION", "request_id": "r"}
    page = await open_rollouts(desk, server, rollouts)
    await page.get_by_role("button", name="Start a rollout…").click()
    await page.get_by_role("dialog").get_by_role("button", name="Start").click()
    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("The alias has a rollout")
    assert desk.problems == [CONFLICT]
    desk.problems.clear()


async def test_server_that_knows_no_rollouts_is_said_to_have_none(desk: Visit, server: RunningServer) -> None:
    async def unknown(route: Route) -> None:
        await route.fulfill(status=404, json={"error": {"message": "Not Found", "code": "NOT_FOUND"}})

    await desk.page.route("**/v1/adapters/*/rollouts", unknown)
    await desk.page.goto(f"{server.http}/console#/rollouts")
    await expect(desk.page.get_by_text("This server has no rollouts")).to_be_visible()
    await expect(desk.page.get_by_role("button", name="Start a rollout…")).to_have_count(0)
    assert set(desk.problems) == {NOT_FOUND}
    desk.problems.clear()
