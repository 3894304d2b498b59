"""What is told of an ended request, and the two forms it is told in: a log line and the spans of a trace.

Ids, digests, counts, codes and times; the texts only in a log line, and only where the operator allows it. Any thread.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from server.observability.spans import Stage, Value

_log = logging.getLogger("medley.requests")
_SERVER_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE"})


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One ended request. Times are monotonic; None where it did not come so far.

    Attributes:
        request_id: The request.
        who: Who asked; never a secret.
        adapters: The versions that served it, as ``name:version``.
        digests: Their content addresses.
        code: ``OK`` or an error code.
        finish_reason: Why it ended; empty if it was refused or given up.
        num_prompt_tokens: Of the rendered prompt; 0 if it was refused before.
        num_completion_tokens: Tokens handed out.
        accepted_s: When the service took it.
        leased_s: When its adapters' bytes were at hand.
        submitted_s: When the engine took it into its queue.
        scheduled_s: When the engine's first step with it began.
        first_token_s: When its first token arrived.
        answered_s: When its answer was complete or had failed.
        closed_s: When everything was released, scores waited for.
        loads: Loads of its adapters while it was in the queue.
    """

    request_id: str
    who: str
    adapters: tuple[str, ...]
    digests: tuple[str, ...]
    code: str
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    accepted_s: float
    leased_s: float | None
    submitted_s: float | None
    scheduled_s: float | None
    first_token_s: float | None
    answered_s: float | None
    closed_s: float
    loads: tuple[Stage, ...] = ()

    @property
    def ended_s(self) -> float:
        """When there was nothing more to wait for but scores."""
        return self.closed_s if self.answered_s is None else self.answered_s


def log_ended(request: EndedRequest, trace_id: str, texts: Mapping[str, str | None]) -> None:
    """Write the request's log line.

    Args:
        request: What is told.
        trace_id: Of the trace that has its spans; empty if there is none.
        texts: Further fields, for where texts may be logged.
    """
    queued_s, scheduled_s = request.submitted_s, request.scheduled_s
    fields: dict[str, object] = {
        "request_id": request.request_id,
        "who": request.who,
        "adapters": list(request.adapters),
        "digests": list(request.digests),
        "code": request.code,
        "finish_reason": request.finish_reason,
        "num_prompt_tokens": request.num_prompt_tokens,
        "num_completion_tokens": request.num_completion_tokens,
        "queue_ms": None if queued_s is None or scheduled_s is None else _ms(scheduled_s - queued_s),
        "ttft_ms": None if request.first_token_s is None else _ms(request.first_token_s - request.accepted_s),
        "e2e_ms": _ms(request.ended_s - request.accepted_s),
    }
    if trace_id:
        fields["trace_id"] = trace_id
    _log.info("request ended", extra={**fields, **texts})


def spans_of(request: EndedRequest) -> Stage:
    """Return the request as a span with its stages: lease, prompt, queue with loads, prefill, decode, score.

    A stage that the request ended in is as long as the request stayed in it; later ones are missing.
    """
    begins = (
        ("lease", request.accepted_s),
        ("prompt", request.leased_s),
        ("queue", request.submitted_s),
        ("prefill", request.scheduled_s),
        ("decode", request.first_token_s),
        ("score", request.answered_s),
    )
    reached = [(name, begun_s) for name, begun_s in begins if begun_s is not None]
    ends = [*(begun_s for _, begun_s in reached[1:]), request.closed_s]
    stages = tuple(
        Stage(name, begun_s, max(begun_s, ended_s), stages=request.loads if name == "queue" else ())
        for (name, begun_s), ended_s in zip(reached, ends, strict=True)
    )
    attributes: dict[str, Value] = {
        "medley.request_id": request.request_id,
        "medley.adapters": request.adapters,
        "medley.digests": request.digests,
        "medley.code": request.code,
        "medley.finish_reason": request.finish_reason,
        "medley.num_prompt_tokens": request.num_prompt_tokens,
        "medley.num_completion_tokens": request.num_completion_tokens,
    }
    error = request.code if request.code in _SERVER_FAULTS else ""
    return Stage("request", request.accepted_s, request.closed_s, attributes, stages, error)


def _ms(duration_s: float) -> float:
    return round(duration_s * 1e3, 3)
