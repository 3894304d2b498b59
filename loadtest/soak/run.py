"""Runs a soak: four loads at once, and a look at the server's processes every few seconds. Knows no verdict."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, cast

from loadtest.clients.base import MedleyClient
from loadtest.clients.target import connect
from loadtest.popularity import names_of
from loadtest.preparation import prepare
from loadtest.recording import Recording
from loadtest.records import Outcome, RequestRecord, is_measured
from loadtest.scenario import Scenario
from loadtest.session import Session, together
from loadtest.soak.processes import ProcessSample, ProcessTree
from loadtest.soak.traffic import Watched, lanes_of


@dataclass(frozen=True, slots=True)
class Ended:
    """One measured request that ended.

    Attributes:
        at_s: When, in seconds from the start of the soak.
        e2e_ms: How long it took; None unless it completed.
        error_code: Why it failed; empty if it did not.
    """

    at_s: float
    e2e_ms: float | None
    error_code: str


class Soak:
    """One soak; whatever way it ends, it has what was seen.

    Args:
        scenario: What to send, all protocols together.
        server: Where to.
        every_s: Seconds between two looks at the processes.
        folder: Where records go as they come, a folder for each load; None keeps them in memory alone.
        on_progress: Called after each look.

    Attributes:
        samples: What the processes held.
        ended: The requests.
        recordings: The loads, by name.

    Raises:
        ValueError: If the scenario cannot be dealt out.
        ProcessGoneError: If there is no such process.
    """

    def __init__(
        self,
        scenario: Scenario,
        server: Watched,
        every_s: float,
        folder: Path | None = None,
        on_progress: Callable[["Soak"], None] | None = None,
    ) -> None:
        self._scenario, self._server, self._every_s = scenario, server, every_s
        self._on_progress, self._folder = on_progress, folder
        self._tree = ProcessTree(server.pid)
        self.samples: list[ProcessSample] = []
        self.ended: list[Ended] = []
        self.recordings = {
            name: Recording(lane, folder and folder / name) for name, lane in lanes_of(scenario, server).items()
        }

    async def run(self) -> None:
        """Send everything and wait for the last answers.

        Raises:
            ProcessGoneError: If the server's process ended.
            ServerGoneError: If nobody listens at its addresses, or nobody does any more.
            ClientError: If the preparation or the warm-up is refused.
            SourceError: If there is nothing to make adapters of.
        """
        await self._make_adapters()
        with contextlib.ExitStack() as stack:
            for recording in self.recordings.values():
                stack.enter_context(recording)
            file = None
            if self._folder is not None:
                file = stack.enter_context((self._folder / "samples.jsonl").open("w", encoding="utf-8", buffering=1))
            zero_s = asyncio.get_running_loop().time()
            keep = partial(self._keep, zero_s)
            loads = [Session(recording, on_record=keep).run() for recording in self.recordings.values()]
            looking = asyncio.create_task(self._look(zero_s, file))
            sending = asyncio.create_task(together(loads, asyncio.FIRST_EXCEPTION))
            try:
                await asyncio.wait({looking, sending}, return_when=asyncio.FIRST_COMPLETED)
                (sending if sending.done() else looking).result()
            finally:
                for task in (looking, sending):
                    task.cancel()
                await asyncio.gather(looking, sending, return_exceptions=True)

    async def _make_adapters(self) -> None:
        if self._scenario.prepare is not None:
            target = self.recordings[next(iter(self.recordings))].scenario.target
            async with connect(target) as client:
                names = names_of(self._scenario.adapters.entries())
                await prepare(cast(MedleyClient, client), names, self._scenario.prepare.source)

    def _keep(self, zero_s: float, record: RequestRecord) -> None:
        if is_measured(record):
            e2e_ms = (record.ended_s - record.sent_s) * 1e3 if record.outcome is Outcome.COMPLETED else None
            self.ended.append(Ended(asyncio.get_running_loop().time() - zero_s, e2e_ms, record.error_code))

    async def _look(self, zero_s: float, file: TextIO | None) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            # Reading what the system tells of processes takes a while, in which requests are due.
            sample = await asyncio.to_thread(self._tree.sample, clock() - zero_s)
            self.samples.append(sample)
            if file is not None:
                file.write(json.dumps(asdict(sample)) + "\n")
            if self._on_progress is not None:
                self._on_progress(self)
            await asyncio.sleep(self._every_s)
