"""What happened to each request of a run: one record each, whether it was answered, refused or never sent.

All times are seconds on one monotonic clock, counted from the start of the measured part: what belongs to the warm-up
is negative. Knows no protocol and no statistics.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


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
        num_prompt_tokens: Tokens of the prompt, as the server counts them; 0 unless completed.
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
    num_prompt_tokens: int = 0


def is_measured(record: RequestRecord) -> bool:
    """Say whether a request counts, rather than belonging to the warm-up."""
    return record.scheduled_s >= 0


def to_line(record: RequestRecord) -> str:
    """Return a record as one line of JSON, its end included."""
    return json.dumps(asdict(record), separators=(",", ":")) + "\n"


def from_line(line: str | bytes) -> RequestRecord:
    """Return the record that :func:`to_line` wrote.

    Raises:
        ValueError: If it is none.
    """
    try:
        fields = json.loads(line)
        outcome, times = Outcome(fields.pop("outcome")), tuple(fields.pop("piece_times_s"))
        return RequestRecord(outcome=outcome, piece_times_s=times, **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record: {error}") from error


def read_records(path: Path) -> list[RequestRecord]:
    """Read a file of records; a last line that was cut off is left out.

    Raises:
        ValueError: If another line is no record.
        OSError: If the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [from_line(line) for line in _whole(lines)]


def _whole(lines: list[str]) -> Iterable[str]:
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]
