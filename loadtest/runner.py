"""Sends a planned run open loop: each request at its time, whether or not earlier ones were answered.

Runs on one event loop. Knows neither statistics nor how progress is shown. What keeps a client honest is recorded, not
hidden: how late each request was sent, and each one dropped because too many were in flight.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loadtest.clients.base import ClientError, MedleyClient, SummaryRequest
from loadtest.clients.reading import read_stream
from loadtest.records import Outcome, RequestRecord
from loadtest.workload import MixEntry, PlannedRequest

DROPPED_CODE = "DROPPED_BY_CLIENT"
"""Code of a request that was never sent because ``max_in_flight`` others were."""


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """How to send.

    Attributes:
        stream: Ask for the answer in pieces; without, only end-to-end times can be measured.
        timeout_s: Time limit of one request.
        max_in_flight: Most requests in flight; one more is dropped and counted.
        max_new_tokens: Most tokens to generate; the server's default when None.
    """

    stream: bool = True
    timeout_s: float = 60.0
    max_in_flight: int = 512
    max_new_tokens: int | None = None


class Runner:
    """Sends requests through one client and records what became of each.

    Args:
        client: An open client.
        config: How to send.
        on_record: Called with each record as it is made, on the event loop; for progress.
    """

    def __init__(self, client: MedleyClient, config: RunnerConfig, on_record: Callable[[RequestRecord], None]) -> None:
        self._client = client
        self._config = config
        self._on_record = on_record
        self._records: list[RequestRecord] = []
        self._num_in_flight = 0
        self._started_s = 0.0

    async def warm_up(self, mix: Sequence[MixEntry], text: str, num_rounds: int) -> None:
        """Send each kind of request a few times, one after the other, unrecorded: adapters become resident.

        Raises:
            ClientError: If one fails; a run on top of it would measure failures.
        """
        for _ in range(num_rounds):
            for entry in mix:
                await self._client.summarize(self._request(text, entry.adapters), self._config.timeout_s)

    async def run(self, planned: Sequence[PlannedRequest]) -> list[RequestRecord]:
        """Send all requests at their times and wait until each has ended.

        Args:
            planned: In order of time; times count from this call.

        Returns:
            One record a request, in the order in which they ended.
        """
        self._records = []
        self._started_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for request in planned:
                await asyncio.sleep(max(0.0, request.scheduled_s - self._now_s()))
                if self._num_in_flight < self._config.max_in_flight:
                    self._num_in_flight += 1
                    group.create_task(self._send(request))
                else:
                    self._record(self._dropped(request))
        return self._records

    async def _send(self, planned: PlannedRequest) -> None:
        sent_s = self._now_s()
        request = self._request(planned.text, planned.adapters)
        piece_times_s: list[float] = []
        begun = RequestRecord(planned.label, Outcome.FAILED, planned.scheduled_s, sent_s, sent_s)
        try:
            if self._config.stream:
                answer = await read_stream(
                    self._client, request, self._config.timeout_s, lambda: piece_times_s.append(self._now_s())
                )
            else:
                answer = await self._client.summarize(request, self._config.timeout_s)
        except ClientError as error:
            ended = replace(begun, error_code=error.code, error_message=error.message)
        else:
            ended = replace(
                begun,
                outcome=Outcome.COMPLETED,
                num_output_tokens=answer.num_output_tokens,
                finish_reason=answer.finish_reason,
            )
        self._num_in_flight -= 1
        self._record(replace(ended, ended_s=self._now_s(), piece_times_s=tuple(piece_times_s)))

    def _request(self, text: str, adapters: tuple[str, ...]) -> SummaryRequest:
        return SummaryRequest(text, adapters, self._config.max_new_tokens)

    def _dropped(self, planned: PlannedRequest) -> RequestRecord:
        now_s = self._now_s()
        return RequestRecord(
            label=planned.label,
            outcome=Outcome.DROPPED,
            scheduled_s=planned.scheduled_s,
            sent_s=now_s,
            ended_s=now_s,
            error_code=DROPPED_CODE,
            error_message=f"{self._config.max_in_flight} requests were in flight",
        )

    def _record(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._on_record(record)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s
