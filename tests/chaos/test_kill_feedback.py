"""``kill -9`` under feedback, and two servers on one database: no reference that was acknowledged is lost.

What is acknowledged is told by the caller's own count, what is kept by ``GET /v1/evaluations`` after the restart.
"""

import asyncio
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.postgres import running_postgres
from tests.fixtures.server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
_log = logging.getLogger(__name__)

NUM_CALLERS = 4
PATIENCE_S = 240.0
NUM_KILLS = 2
TEXT = "one two three"


def settings_of(*, store_texts: bool, url: str = "") -> dict[str, Any]:
    # The scorer is loaded by the first reference, so that a start has only what the store does.
    evaluation = {"warm_at_start": False, "store_texts": store_texts, "claim_lease_s": 1.0, "upkeep_every_s": 0.5}
    return {"evaluation": evaluation, "registry": {"url": url} if url else {}}


class Feedback:
    """Callers who ask and send references, one by one and in bulk; what was acknowledged is counted."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.acknowledged: set[str] = set()
        self._num_asked = 0

    async def run(self) -> None:
        """Go on until the server is gone."""
        async with httpx.AsyncClient(base_url=self.server.http, timeout=PATIENCE_S) as client:
            await asyncio.gather(*(self._call(client) for _ in range(NUM_CALLERS)), return_exceptions=True)

    async def _call(self, client: httpx.AsyncClient) -> None:
        while True:
            ids = [await self._ask(client) for _ in range(3)]
            body = {"request_id": ids[0], "references": [TEXT]}
            if (await client.post("/v1/references", json=body)).status_code == 200:
                self.acknowledged.add(ids[0])
            rows = "".join(json.dumps({"request_id": each, "reference": TEXT}) + "\n" for each in ids[1:])
            batch = await client.post(
                "/v1/references/batch", content=rows, headers={"content-type": "application/jsonl"}
            )
            if batch.status_code == 200 and batch.json()["num_accepted"] == len(ids) - 1:
                self.acknowledged.update(ids[1:])

    async def _ask(self, client: httpx.AsyncClient) -> str:
        self._num_asked += 1
        request_id = f"asked-{self._num_asked}"
        answer = await client.post("/v1/summarize", json={"text": TEXT, "request_id": request_id})
        answer.raise_for_status()
        return request_id


async def base_figures(server: ServerProcess) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.http, timeout=PATIENCE_S) as client:
        entries = (await client.get("/v1/evaluations?adapter=base")).raise_for_status().json()["evaluations"]
    return dict(entries[0]) if entries else {"num_finished": 0, "num_scored": 0}


@pytest.mark.parametrize("store_texts", [False, True], ids=["hashes", "texts"])
async def test_killed_server_keeps_every_acknowledged_reference(
    tmp_path: Path, record_fault: RecordFault, *, store_texts: bool
) -> None:
    settings, draws = settings_of(store_texts=store_texts), random.Random(3)
    server = ServerProcess(tmp_path / "server", settings, start_timeout_s=PATIENCE_S)
    feedback = Feedback(server)
    try:
        await server.start()
        for _ in range(NUM_KILLS):
            calling = asyncio.create_task(feedback.run())
            before = len(feedback.acknowledged)
            async with asyncio.timeout(PATIENCE_S):
                while len(feedback.acknowledged) < before + 20:  # noqa: ASYNC110 - the server is another process
                    await asyncio.sleep(0.01)
            await asyncio.sleep(draws.random() / 4)
            server.kill()
            await calling
            begun_s = time.monotonic()
            await server.start()
            start_s = time.monotonic() - begun_s
            kept = await base_figures(server)
            assert kept["num_scored"] >= len(feedback.acknowledged)
        assert kept["num_finished"] >= kept["num_scored"]
    finally:
        server.kill()
    _log.info("%d acknowledged, %d kept", len(feedback.acknowledged), kept["num_scored"])
    record_fault(
        Fault(
            f"kill -9 of the server, {NUM_KILLS} times amid feedback, {'texts' if store_texts else 'hashes'} kept",
            sent=f"{len(feedback.acknowledged)} references acknowledged",
            lost="none of them",
            recovered_s=start_s,
        )
    )


async def test_two_servers_on_one_database_keep_one_account(tmp_path: Path) -> None:
    with running_postgres() as postgres:
        settings = settings_of(store_texts=True, url=postgres.url(postgres.make_database()))
        first, second = (
            ServerProcess(tmp_path / name, settings, start_timeout_s=PATIENCE_S) for name in ("first", "second")
        )
        try:
            await asyncio.gather(first.start(), second.start())
            async with (
                httpx.AsyncClient(base_url=first.http, timeout=PATIENCE_S) as one,
                httpx.AsyncClient(base_url=second.http, timeout=PATIENCE_S) as other,
            ):
                for number in range(20):
                    asked, told = (one, other) if number % 2 else (other, one)
                    body = {"text": TEXT, "request_id": f"r{number}"}
                    (await asked.post("/v1/summarize", json=body)).raise_for_status()
                    await asked.get("/v1/evaluations")  # what ended there is written when this answers
                    references = {"request_id": f"r{number}", "references": [TEXT]}
                    # A report that has waited too long for what ended answers without it, and a scorer may yet start.
                    scored = await told.post("/v1/references", json=references)
                    async with asyncio.timeout(PATIENCE_S):
                        while scored.status_code in {404, 503}:
                            await asyncio.sleep(0.2)
                            scored = await told.post("/v1/references", json=references)
                    assert scored.status_code == 200, scored.text
            figures = [await base_figures(server) for server in (first, second)]
            for each in figures:
                assert (each["num_finished"], each["num_scored"]) == (20, 20)
                assert each["means"]["rouge1"] == pytest.approx(100.0)
            first.kill()
            assert (await base_figures(second))["num_scored"] == 20
        finally:
            first.kill()
            second.kill()
