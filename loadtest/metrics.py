"""What is measured of a run: small classes, each with a tag, a unit and a formula, over request records.

Latencies give any number of values per request and are summed up as a distribution; run metrics give one value. Only
completed requests have latencies. Knows no clients. Definitions: ``docs/metrics.md`` and ``docs/loadtest.md``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from loadtest.histogram import Distribution, distribution
from loadtest.records import Outcome, RequestRecord
from loadtest.spec import spec


class Latency(ABC):
    """A duration measured on completed requests."""

    tag: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    unit: ClassVar[str] = "ms"

    @abstractmethod
    def values(self, record: RequestRecord) -> Sequence[float]:
        """Return what one completed request adds to the sample, in milliseconds; nothing if it cannot be known."""

    def measure(self, records: Iterable[RequestRecord], *, encode: bool = False) -> Distribution | None:
        """Sum up a run, with its histogram if so asked; None if no request gave a value."""
        completed = (record for record in records if record.outcome is Outcome.COMPLETED)
        return distribution((value for record in completed for value in self.values(record)), encode=encode)


class TimeToFirstToken(Latency):
    """How long until the first text."""

    tag = "ttft"
    title = "TTFT"
    formula = "first piece of text - send"

    def values(self, record: RequestRecord) -> Sequence[float]:
        """One value for a streamed request that said anything."""
        return [(first - record.sent_s) * 1e3 for first in record.piece_times_s[:1]]


class InterTokenLatency(Latency):
    """How long between pieces of text."""

    tag = "itl"
    title = "ITL"
    formula = "raw gaps between pieces of text"

    def values(self, record: RequestRecord) -> Sequence[float]:
        """One value per gap."""
        return [(after - before) * 1e3 for before, after in pairwise(record.piece_times_s)]


class TimePerOutputToken(Latency):
    """How long a token takes after the first."""

    tag = "tpot"
    title = "TPOT"
    formula = "(e2e - TTFT) / (output tokens - 1)"

    def values(self, record: RequestRecord) -> Sequence[float]:
        """One value for a streamed request of at least two tokens."""
        if not record.piece_times_s or record.num_output_tokens < 2:
            return []
        return [(record.ended_s - record.piece_times_s[0]) * 1e3 / (record.num_output_tokens - 1)]


class EndToEnd(Latency):
    """How long until the whole answer."""

    tag = "e2e"
    title = "e2e"
    formula = "last byte - send"

    def values(self, record: RequestRecord) -> Sequence[float]:
        """One value."""
        return [(record.ended_s - record.sent_s) * 1e3]


LATENCIES: tuple[Latency, ...] = (TimeToFirstToken(), InterTokenLatency(), TimePerOutputToken(), EndToEnd())


def client_lag(records: Iterable[RequestRecord]) -> Distribution | None:
    """How late requests were sent, in milliseconds: if this is not small, the client is the bottleneck."""
    # A timer may fire a clock tick early.
    return distribution(max(0.0, record.sent_s - record.scheduled_s) * 1e3 for record in records)


Bound = Annotated[float, Field(gt=0)]


@spec
class Slo:
    """Bounds in milliseconds that a good request keeps; None asks nothing.

    A request of one token has no TPOT and keeps any bound on it.
    """

    ttft_ms: Bound | None = None
    tpot_ms: Bound | None = None
    e2e_ms: Bound | None = None

    @property
    def bounds_ms(self) -> dict[str, float]:
        """The bounds that were set, by the tag of their latency."""
        bounds = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {tag: bound for tag, bound in bounds.items() if bound is not None}

    def is_met_by(self, record: RequestRecord) -> bool:
        """Say whether a request completed within every bound."""
        return record.outcome is Outcome.COMPLETED and all(
            value <= self.bounds_ms[latency.tag]
            for latency in LATENCIES
            if latency.tag in self.bounds_ms
            for value in latency.values(record)
        )


class RunMetric(ABC):
    """One figure of a whole run, or of one adapter's part in it."""

    tag: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    formula: ClassVar[str]

    @abstractmethod
    def measure(self, records: Sequence[RequestRecord], duration_s: float) -> float:
        """Return the figure.

        Args:
            records: The requests it is about.
            duration_s: Length of the run: from its start until the last request ended, above 0.
        """


class RequestThroughput(RunMetric):
    """Completed requests per second."""

    tag = "requests_per_s"
    title = "throughput"
    unit = "requests/s"
    formula = "completed requests / duration"

    def measure(self, records: Sequence[RequestRecord], duration_s: float) -> float:
        """Return requests per second."""
        return sum(record.outcome is Outcome.COMPLETED for record in records) / duration_s


class TokenThroughput(RunMetric):
    """Output tokens of completed requests per second."""

    tag = "output_tokens_per_s"
    title = "tokens"
    unit = "tokens/s"
    formula = "output tokens of completed requests / duration"

    def measure(self, records: Sequence[RequestRecord], duration_s: float) -> float:
        """Return tokens per second."""
        return sum(record.num_output_tokens for record in records) / duration_s


class Goodput(RunMetric):
    """Completed requests per second that keep every bound.

    Args:
        slo: The bounds.
    """

    tag = "goodput_per_s"
    title = "goodput"
    unit = "requests/s"
    formula = "completed requests within every SLO / duration"

    def __init__(self, slo: Slo) -> None:
        self._slo = slo

    def measure(self, records: Sequence[RequestRecord], duration_s: float) -> float:
        """Return requests per second."""
        return sum(self._slo.is_met_by(record) for record in records) / duration_s
