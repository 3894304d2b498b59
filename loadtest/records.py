"""What happened to each request of a run: one record each, whether it was answered, refused or never sent.

All times are seconds on one monotonic clock, counted from the start of the run. Knows no protocol and no statistics.
"""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended, seen from the client."""

    COMPLETED = "completed"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request of a run.

    Attributes:
        label: The adapters it asked for, joined by ``+``, or ``base``.
        outcome: Completed, failed, or dropped by the client because too many were in flight.
        scheduled_s: When the arrival process wanted it sent.
        sent_s: When it was sent; equals ``ended_s`` for a dropped one.
        ended_s: When its last byte, or its failure, was seen.
        piece_times_s: When each piece that carries text arrived; empty without streaming.
        num_output_tokens: Tokens the server says it generated; 0 unless completed.
        finish_reason: The server's reason, empty unless completed.
        error_code: One of the server's error codes, or a client-side one; empty when completed.
        error_message: What the failure said.
    """

    label: str
    outcome: Outcome
    scheduled_s: float
    sent_s: float
    ended_s: float
    piece_times_s: tuple[float, ...] = ()
    num_output_tokens: int = 0
    finish_reason: str = ""
    error_code: str = ""
    error_message: str = ""
