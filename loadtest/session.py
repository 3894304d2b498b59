"""One scenario run against one server: preparation, warm-up, the load, and what goes on beside it.

Knows neither figures nor how progress is shown.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import cast

from loadtest.churn import Operator
from loadtest.clients.base import CONNECTION, NO_CREDENTIALS, Credentials, MedleyClient
from loadtest.clients.target import connect
from loadtest.observer import observe
from loadtest.popularity import names_of
from loadtest.preparation import prepare
from loadtest.presence import ServerGoneError, Watch, is_listening
from loadtest.recording import Recording
from loadtest.records import RequestRecord
from loadtest.runner import Runner
from loadtest.sender import RunnerConfig
from loadtest.senders import create_senders
from loadtest.shares import Share, deal

_UNREACHED = {CONNECTION, "UNAVAILABLE"}
# From the word to begin until the first request may be due.
_LEAD_S = 0.1


class Session:
    """Runs one scenario once.

    Args:
        recording: What to run, and where what is seen goes.
        credentials: For a server that wants a key or speaks TLS.
        on_record: Called with each record, for progress.
        on_made: Called as adapters are made, with how many there are and how many there will be.

    Raises:
        ValueError: If the scenario's data or traces cannot be used, or nothing would be sent.
    """

    def __init__(
        self,
        recording: Recording,
        credentials: Credentials = NO_CREDENTIALS,
        on_record: Callable[[RequestRecord], None] | None = None,
        on_made: Callable[[int, int], None] | None = None,
    ) -> None:
        self._recording, self._credentials = recording, credentials
        self._on_record, self._on_made = on_record, on_made
        self._scenario = recording.scenario
        self._shares: Sequence[Share] = deal(self._scenario)
        self.num_planned = sum(len(share.planned) for share in self._shares if share.users is None)

    async def run(self) -> None:
        """Run it; however it ends, the recording has what was seen.

        Raises:
            ServerGoneError: If nobody listens at the target, or nobody does any more.
            ClientError: If the preparation or the warm-up is refused.
            SourceError: If there is nothing to make adapters of.
            WorkerLostError: If a sending process is gone.
        """
        target = self._scenario.target
        if not await is_listening(target.full_address):
            raise ServerGoneError(f"no server at {target.full_address}: start one, or give target.address (--address)")
        await self._get_ready()
        watch = Watch(target.full_address)

        def keep(record: RequestRecord) -> None:
            self._recording.keep(record)
            if self._on_record is not None:
                self._on_record(record)
            if record.error_code in _UNREACHED:
                watch.doubt()

        async with create_senders(self._shares, target, self._credentials, keep) as senders:
            zero_s = asyncio.get_running_loop().time() + _LEAD_S + self._scenario.warm_up.duration_s
            async with self._beside(zero_s):
                await together((senders.run(zero_s), watch.until_gone()), asyncio.FIRST_COMPLETED)

    async def _get_ready(self) -> None:
        """Make adapters and send the rounds of the warm-up."""
        scenario = self._scenario
        kinds = scenario.adapters.entries()
        async with connect(scenario.target, self._credentials) as client:
            if scenario.prepare is not None:
                names = names_of(kinds)
                await prepare(cast(MedleyClient, client), names, scenario.prepare.source, self._on_made)
            warmer = Runner(client, RunnerConfig(timeout_s=scenario.target.timeout_s), _ignore)
            await warmer.warm_up(kinds, self._shares[0].planned[0].text, scenario.warm_up.rounds)

    @contextlib.asynccontextmanager
    async def _beside(self, zero_s: float) -> AsyncIterator[None]:
        """Let the operator and the observer work as long as the block runs."""
        scenario, recording = self._scenario, self._recording
        async with contextlib.AsyncExitStack() as stack:
            tasks = []
            if scenario.churn is not None:
                client = await stack.enter_async_context(connect(scenario.target, self._credentials))
                operator = Operator(cast(MedleyClient, client), scenario.churn, recording.keep_event)
                tasks.append(asyncio.create_task(operator.work(zero_s)))
            if scenario.observed_address:
                reading = observe(
                    scenario.observed_address,
                    self._credentials,
                    scenario.observe.every_s,
                    zero_s,
                    recording.keep_reading,
                )
                tasks.append(asyncio.create_task(reading))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            for error in ended:
                if isinstance(error, Exception):
                    raise error


def _ignore(record: RequestRecord) -> None:
    del record


async def together(works: Iterable[Coroutine[None, None, None]], until: str) -> None:
    """Wait for works, and leave none running.

    Args:
        works: What runs at once.
        until: When it is over, as :func:`asyncio.wait` names it; what any that is done by then raised is raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
