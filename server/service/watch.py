"""Follows a request from its acceptance to its end, and tells of it once it has ended: in a log line, in a trace.

Takes no times while tokens come; what it is told it keeps. Event loop's thread only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core.outputs import GenerationChunk
from server.core.request import GenerationRequest
from server.engine.base import EngineStats
from server.observability.durations import TimedLoad
from server.observability.ended_request import EndedRequest, log_ended, spans_of
from server.observability.logging import LogConfig
from server.observability.spans import NO_CALL, Stage, current_call
from server.service.directory import ServableAdapter

OK = "OK"
CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Milestones:
    """What a generation took note of; monotonic times, None where it did not come so far.

    Attributes:
        queue_s: Seconds in the engine's queue.
        first_token_s: When the first token arrived.
        answered_s: When the answer was complete or had failed.
        num_completion_tokens: Tokens handed out.
        pieces: The answer so far.
    """

    queue_s: float | None
    first_token_s: float | None
    answered_s: float | None
    num_completion_tokens: int
    pieces: Sequence[str]


class RequestWatch:
    """Follows one request.

    Args:
        request: The request.
        who: Who asked.
        accepted_s: Monotonic time of acceptance.
        stats: Takes the engine's snapshot.
        log: What is logged.

    Attributes:
        accepted_s: Monotonic time of acceptance.
    """

    def __init__(
        self,
        request: GenerationRequest,
        who: str,
        accepted_s: float,
        stats: Callable[[], EngineStats],
        log: LogConfig,
    ) -> None:
        """Begin at acceptance."""
        self._request = request
        self._who = who
        self.accepted_s = accepted_s
        self._stats = stats
        self._log = log
        self._call = current_call()
        self._adapters: tuple[ServableAdapter, ...] = ()
        self._leased_s: float | None = None
        self._submitted_s: float | None = None
        self._num_prompt_tokens = 0

    def leased(self, adapters: Sequence[ServableAdapter]) -> None:
        """Take note that the adapters' bytes are at hand."""
        self._adapters = tuple(adapters)
        self._leased_s = time.monotonic()

    def submitted(self, submitted_s: float, num_prompt_tokens: int) -> None:
        """Take note of when the engine took the request into its queue."""
        self._num_prompt_tokens = num_prompt_tokens
        self._submitted_s = submitted_s

    def refused(self, code: str) -> None:
        """Tell of a request that was not accepted."""
        self._tell(code, "", Milestones(None, None, None, 0, ()))

    def ended(self, terminal: GenerationChunk | None, milestones: Milestones) -> None:
        """Tell of an accepted request, by its last chunk, or None if it was given up."""
        if terminal is None:
            self._tell(CANCELLED, "", milestones)
            return
        code = OK if terminal.error is None else terminal.error.code
        self._tell(code, terminal.finish_reason or "", milestones)

    def _tell(self, code: str, finish_reason: str, milestones: Milestones) -> None:
        is_traced = self._call is not NO_CALL
        if not (is_traced or self._log.requests):
            return
        submitted_s, queue_s = self._submitted_s, milestones.queue_s
        scheduled_s = None if submitted_s is None or queue_s is None else submitted_s + queue_s
        ended = EndedRequest(
            request_id=self._request.request_id,
            who=self._who,
            adapters=tuple(f"{adapter.use.name}:{adapter.use.version}" for adapter in self._adapters),
            digests=tuple(adapter.use.digest for adapter in self._adapters),
            code=code,
            finish_reason=finish_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_completion_tokens=milestones.num_completion_tokens,
            accepted_s=self.accepted_s,
            leased_s=self._leased_s,
            submitted_s=submitted_s,
            scheduled_s=scheduled_s,
            first_token_s=milestones.first_token_s,
            answered_s=milestones.answered_s,
            closed_s=time.monotonic(),
            loads=self._loads(scheduled_s) if is_traced else (),
        )
        if is_traced:
            self._call.keep(spans_of(ended))
            self._call.note({"medley.code": code})
        if self._log.requests:
            texts = {"text": self._request.text, "answer": "".join(milestones.pieces)} if self._log.texts else {}
            log_ended(ended, self._call.trace_id, texts)

    def _loads(self, scheduled_s: float | None) -> tuple[Stage, ...]:
        """Return the loads of the request's adapters that it may have waited for in the queue."""
        if self._submitted_s is None or scheduled_s is None or not self._adapters:
            return ()
        digests = {adapter.use.digest for adapter in self._adapters}
        return tuple(
            Stage("load", load.ended_s - load.duration_s, load.ended_s, {"medley.digest": load.digest})
            for load in self._stats().adapter_load_times.latest
            if load.digest in digests and _overlaps(load, self._submitted_s, scheduled_s)
        )


def _overlaps(load: TimedLoad, begun_s: float, ended_s: float) -> bool:
    return load.ended_s >= begun_s and load.ended_s - load.duration_s <= ended_s
