"""An ended request under a key of its own, and what is written of it. Knows no database."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.evaluation.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """An ended request; callers may use a request id again, so it has a key as well.

    Attributes:
        key: Its own among those of all servers.
        outcome: The request.
        metrics: Names of what it is to be scored by; empty for the scorer's own choice.
    """

    key: str
    outcome: Outcome
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be kept of a request; what is there already stays.

    Attributes:
        record: The request.
        signals: What its answer looks like by itself: name → value.
        references: Texts to compare with; empty for none.
        scores: Metric name → value; None where it is still to be scored.
    """

    record: Record
    signals: Mapping[str, float] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None


def new_record(outcome: Outcome, metrics: tuple[str, ...] = ()) -> Record:
    """Return a request under a new key, with the names of what it is to be scored by."""
    return Record(uuid.uuid4().hex, outcome, metrics)


def hash_text(text: str) -> str:
    """Return what stands for a text where texts are not kept: its SHA-256, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_texts(texts: Sequence[str]) -> list[str]:
    """Return what stands for each text."""
    return [hash_text(text) for text in texts]
