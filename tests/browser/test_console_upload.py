"""Uploading a version in the console, by choosing files and by dropping them; what cannot be an adapter is refused."""

import base64
from typing import Any

import httpx
import pytest
from playwright.async_api import FilePayload, Page, expect

from tests.fixtures.archives import packed
from tests.fixtures.chromium import Visit
from tests.fixtures.peft_files import CONFIG, WEIGHTS, Files, lora_files, with_nan
from tests.fixtures.running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

BAD_REQUEST = "error: Failed to load resource: the server responded with a status of 400 (Bad Request)"

# Drops files on the place for them as a desktop does, with a DataTransfer.
DROP = """([files]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const place = document.querySelector(".drop");
    for (const type of ["dragover", "drop"]) {
        place.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }
}"""


def payloads(files: Files) -> list[FilePayload]:
    return [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files.items()]


async def open_upload(desk: Visit, server: RunningServer) -> Page:
    await desk.page.goto(f"{server.http}/console#/upload")
    await expect(desk.page.get_by_role("heading", name="Upload", level=1)).to_be_visible()
    return desk.page


async def choose(page: Page, files: Files) -> None:
    async with page.expect_file_chooser() as opened:
        await page.get_by_role("button", name="Choose files…").click()
    await (await opened.value).set_files(payloads(files))


async def shown(server: RunningServer, name: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.http) as client:
        return dict((await client.get(f"/v1/adapters/{name}")).raise_for_status().json())


async def test_chosen_files_become_a_version_with_alias_and_tags(desk: Visit, server: RunningServer) -> None:
    page = await open_upload(desk, server)
    upload = page.locator("form").get_by_role("button", name="Upload", exact=True)
    await expect(upload).to_have_accessible_description("Choose the files first.")
    await choose(page, {**lora_files(21), "training_args.json": b"{}"})
    await expect(page.get_by_role("group", name="Chosen files")).to_contain_text("stays here: not a file of an adapter")
    await expect(upload).to_have_accessible_description("Give it a name first.")
    await page.get_by_label("Name").fill("chosen")
    await page.get_by_label("Alias (optional)").fill("stable")
    await page.get_by_label("Tags (optional)").fill("nightly, good")
    await upload.click()
    await expect(page.get_by_text("chosen:1 is ready", exact=True)).to_be_visible()
    adapter = await shown(server, "chosen")
    assert adapter["aliases"] == {"stable": 1}
    assert adapter["versions"][0]["tags"] == ["good", "nightly"]
    assert adapter["versions"][0]["state"] == "ready"
    await page.get_by_role("link", name="Look at it").click()
    await expect(page.get_by_role("heading", name="chosen", level=1)).to_be_visible()


async def test_dropped_files_become_a_version(desk: Visit, server: RunningServer) -> None:
    page = await open_upload(desk, server)
    files = [[name, base64.b64encode(data).decode()] for name, data in lora_files(22).items()]
    await page.evaluate(DROP, [files])
    await expect(page.get_by_role("group", name="Chosen files")).to_contain_text(WEIGHTS)
    await page.get_by_label("Name").fill("dropped")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("dropped:1 is ready", exact=True)).to_be_visible()
    assert len((await shown(server, "dropped"))["versions"]) == 1


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
async def test_archive_becomes_a_version(desk: Visit, server: RunningServer, kind: str) -> None:
    page = await open_upload(desk, server)
    await choose(page, {f"adapter.{kind}": packed(kind, lora_files(23), folder="adapter/")})
    name = f"packed-{kind.replace('.', '-')}"
    await page.get_by_label("Name").fill(name)
    await page.keyboard.press("Enter")
    await expect(page.get_by_text(f"{name}:1 is ready", exact=True)).to_be_visible()


async def test_bad_weights_are_refused_in_the_servers_words_and_can_be_replaced(
    desk: Visit, server: RunningServer
) -> None:
    page = await open_upload(desk, server)
    await choose(page, with_nan(lora_files(24)))
    await page.get_by_label("Name").fill("mended")
    await page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("INVALID_ARGUMENT")
    await expect(alert).to_contain_text("holds NaN, infinity or values too large to serve")
    assert await desk.grave_findings() == []
    assert desk.problems == [BAD_REQUEST]
    desk.problems.clear()
    await choose(page, lora_files(24))
    await expect(alert).to_have_count(0)
    await page.locator("form").get_by_role("button", name="Upload", exact=True).click()
    await expect(page.get_by_text("mended:1 is ready", exact=True)).to_be_visible()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([CONFIG], f"{WEIGHTS} is missing."),
        (["notes.txt"], f"{CONFIG} and {WEIGHTS} are missing."),
        (["a.zip", "b.tar"], "One archive at a time."),
        ([CONFIG, WEIGHTS, "a.zip"], "Either the files or an archive of them."),
    ],
    ids=["no-weights", "neither", "two-archives", "both"],
)
async def test_files_that_make_no_adapter_are_not_sent(
    desk: Visit, server: RunningServer, names: list[str], words: str
) -> None:
    page = await open_upload(desk, server)
    await choose(page, dict.fromkeys(names, b"x"))
    await expect(page.locator(".note.warn")).to_have_text(words)
    await page.get_by_label("Name").fill("never")
    upload = page.locator("form").get_by_role("button", name="Upload", exact=True)
    await expect(upload).to_have_accessible_description(words)
    await upload.click(force=True)
    await page.get_by_role("button", name="Clear").click()
    await expect(page.get_by_role("group", name="Chosen files")).to_have_count(0)
    async with httpx.AsyncClient(base_url=server.http) as client:
        assert (await client.get("/v1/adapters/never")).status_code == 404
