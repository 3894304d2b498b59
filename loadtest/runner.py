"""Sends a planned run: open loop, each request at its time whether or not others were answered; or closed loop.

Runs on one event loop. Knows neither statistics nor how progress is shown. What keeps a client honest is recorded, not
hidden: how late each request was sent, and each one dropped because too many were in flight.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from loadtest.arrivals import generator
from loadtest.clients.base import GenerationClient, SummaryRequest
from loadtest.popularity import MixEntry
from loadtest.records import RequestRecord
from loadtest.sender import OnRecord, RunnerConfig, Sender
from loadtest.workload import PlannedRequest


@dataclass(frozen=True, slots=True)
class Users:
    """Users of a closed loop.

    Attributes:
        numbers: Which of the run's users these are; each has draws of its own.
        think_s: Mean of the exponential pause between an answer and the next request.
        seed: Of the pauses.
        start_s: When they begin, 0 or negative.
        duration_s: When they stop asking.
        num_requests: How many they ask in all, from time 0 on.
    """

    numbers: tuple[int, ...]
    think_s: float
    seed: int
    start_s: float
    duration_s: float | None
    num_requests: int | None


class Runner:
    """Sends requests through one client and records what became of each.

    Args:
        client: An open client.
        config: How to send.
        on_record: Called with each record as it is made, on the event loop.
    """

    def __init__(self, client: GenerationClient, config: RunnerConfig, on_record: OnRecord) -> None:
        self._client, self._timeout_s = client, config.timeout_s
        self._records: list[RequestRecord] = []
        self._sender = Sender(client, config, self._keeping(on_record))

    async def warm_up(self, kinds: Sequence[MixEntry], text: str, num_rounds: int) -> None:
        """Send each kind of request a few times, one after the other, unrecorded: adapters become resident.

        Raises:
            ClientError: If one fails; a run on top of it would measure failures.
        """
        for _ in range(num_rounds):
            for kind in kinds:
                await self._client.summarize(SummaryRequest(text, kind.adapters), self._timeout_s)

    async def run(self, planned: Sequence[PlannedRequest], zero_s: float | None = None) -> list[RequestRecord]:
        """Send all requests at their times and wait until each has ended.

        Args:
            planned: In order of time.
            zero_s: When their time 0 is, on the event loop's clock; now if not given.

        Returns:
            One record a request, in the order in which they ended.
        """
        self._begin(zero_s)
        async with asyncio.TaskGroup() as group:
            for request in planned:
                await asyncio.sleep(max(0.0, request.scheduled_s - self._sender.now_s()))
                if self._sender.is_full:
                    self._sender.drop(request)
                else:
                    group.create_task(self._sender.send(request))
        return self._records

    async def run_users(
        self, pool: Sequence[PlannedRequest], users: Users, zero_s: float | None = None
    ) -> list[RequestRecord]:
        """Let users ask one after the other until their time or their number is over, and wait for the last answers.

        Args:
            pool: What they ask, over again when it ends.
            users: Who they are.
            zero_s: When time 0 is, on the event loop's clock; now if not given.

        Returns:
            One record a request, in the order in which they ended.
        """
        self._begin(zero_s)
        questions = cycle(pool)
        allowed = iter(range(users.num_requests)) if users.num_requests is not None else iter(int, 1)
        async with asyncio.TaskGroup() as group:
            for number in users.numbers:
                group.create_task(self._ask(number, users, questions, allowed))
        return self._records

    async def _ask(
        self, number: int, users: Users, questions: Iterator[PlannedRequest], allowed: Iterator[int]
    ) -> None:
        draws = generator("think", users.seed, number)
        due_s = users.start_s + draws.exponential(users.think_s)
        while users.duration_s is None or due_s < users.duration_s:
            await asyncio.sleep(max(0.0, due_s - self._sender.now_s()))
            if due_s >= 0 and next(allowed, None) is None:
                return
            record = await self._sender.send(replace(next(questions), scheduled_s=due_s))
            due_s = record.ended_s + draws.exponential(users.think_s)

    def _begin(self, zero_s: float | None) -> None:
        self._records.clear()
        self._sender.zero_s = asyncio.get_running_loop().time() if zero_s is None else zero_s

    def _keeping(self, on_record: OnRecord) -> Callable[[RequestRecord], None]:
        def keep(record: RequestRecord) -> None:
            self._records.append(record)
            on_record(record)

        return keep
