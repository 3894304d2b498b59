"""Sends one request and records what became of it. Knows neither when requests are due nor who waits for whom."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from loadtest.clients.base import ClientError, GenerationClient, SummaryRequest
from loadtest.clients.reading import read_stream
from loadtest.records import Outcome, RequestRecord
from loadtest.workload import PlannedRequest

DROPPED_CODE = "DROPPED_BY_CLIENT"
"""Code of a request that was never sent because ``max_in_flight`` others were."""

OnRecord = Callable[[RequestRecord], None]
"""Called with each record as it is made, on the event loop."""


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """How to send.

    Attributes:
        stream: Ask for the answer in pieces; without, only end-to-end times can be measured.
        timeout_s: Time limit of one request.
        max_in_flight: Most requests in flight; one more is dropped and counted.
    """

    stream: bool = True
    timeout_s: float = 60.0
    max_in_flight: int = 512


class Sender:
    """Sends requests through one client.

    Args:
        client: An open client.
        config: How to send.
        on_record: Given each record.
    """

    def __init__(self, client: GenerationClient, config: RunnerConfig, on_record: OnRecord) -> None:
        self._client, self._config, self._on_record = client, config, on_record
        self._num_in_flight = 0
        self.zero_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether one more request would be too many."""
        return self._num_in_flight >= self._config.max_in_flight

    def now_s(self) -> float:
        """Return seconds from the start of the measured part, which is at ``zero_s`` on the loop's clock."""
        return asyncio.get_running_loop().time() - self.zero_s

    async def send(self, planned: PlannedRequest) -> RequestRecord:
        """Send a request, wait for its end and record it."""
        self._num_in_flight += 1
        try:
            record = await self._sent(planned)
        finally:
            self._num_in_flight -= 1
        self._on_record(record)
        return record

    def drop(self, planned: PlannedRequest) -> None:
        """Record a request that is not sent."""
        now_s = self.now_s()
        begun = RequestRecord(planned.label, Outcome.DROPPED, planned.scheduled_s, now_s, now_s)
        message = f"{self._config.max_in_flight} requests were in flight"
        self._on_record(replace(begun, error_code=DROPPED_CODE, error_message=message))

    async def _sent(self, planned: PlannedRequest) -> RequestRecord:
        sent_s = self.now_s()
        request = request_of(planned)
        piece_times_s: list[float] = []
        begun = RequestRecord(planned.label, Outcome.FAILED, planned.scheduled_s, sent_s, sent_s)
        try:
            if self._config.stream:
                answer = await read_stream(
                    self._client, request, self._config.timeout_s, lambda: piece_times_s.append(self.now_s())
                )
            else:
                answer = await self._client.summarize(request, self._config.timeout_s)
        except ClientError as error:
            ended = replace(begun, error_code=error.code, error_message=error.message)
        else:
            ended = replace(
                begun,
                outcome=Outcome.COMPLETED,
                num_prompt_tokens=answer.num_prompt_tokens,
                num_output_tokens=answer.num_output_tokens,
                finish_reason=answer.finish_reason,
            )
        return replace(ended, ended_s=self.now_s(), piece_times_s=tuple(piece_times_s))


def request_of(planned: PlannedRequest) -> SummaryRequest:
    """Return what a client is asked."""
    return SummaryRequest(planned.text, planned.adapters, planned.max_new_tokens, exact=planned.exact)
