"""What a served trace came to: throughput and latency quantiles from times taken where an answer was received.

The measures are those of the load test (``docs/metrics.md``). Time counts from a request's arrival in the trace, not
from when a busy side got round to it. Knows no engine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loadtest.histogram import Distribution
from loadtest.metrics import EndToEnd, InterTokenLatency, TimeToFirstToken
from loadtest.records import Outcome, RequestRecord

_LATENCIES = (TimeToFirstToken(), InterTokenLatency(), EndToEnd())


@dataclass(frozen=True, slots=True)
class Summary:
    """A served trace summed up.

    Attributes:
        num_requests: Requests offered.
        num_failed: Those without a complete answer.
        num_tokens: Tokens that were asked for and came; what a padded batch computes beyond them does not count.
        duration_s: From the start of the trace until the last answer.
        tokens_per_s: The one over the other.
        backlog_s: How long after the last arrival the last answer came.
        latencies_ms: Distributions by measure: ``ttft``, ``itl``, ``e2e``; None where there is no sample.
    """

    num_requests: int
    num_failed: int
    num_tokens: int
    duration_s: float
    tokens_per_s: float
    backlog_s: float
    latencies_ms: dict[str, dict[str, float] | None]

    def p99_ms(self, measure: str) -> float:
        """Return the 99th percentile of a measure, NaN where there is no sample."""
        found = self.latencies_ms[measure]
        return found["p99"] if found else float("nan")

    def p50_ms(self, measure: str) -> float:
        """Return the median of a measure, NaN where there is no sample."""
        found = self.latencies_ms[measure]
        return found["p50"] if found else float("nan")


def answered(arrival_s: float, token_times_s: Sequence[float], num_wanted: int, label: str = "") -> RequestRecord:
    """Return the record of an answer; one that is not as long as was asked for counts as failed.

    Args:
        arrival_s: When the trace has the request, in seconds from its start.
        token_times_s: When each token was received, on the same clock; not empty.
        num_wanted: Tokens asked for.
        label: What kind of request it was.
    """
    outcome = Outcome.COMPLETED if len(token_times_s) == num_wanted else Outcome.FAILED
    # Tokens that come together are one piece: between them is no wait.
    pieces_s = tuple(dict.fromkeys(token_times_s))
    return RequestRecord(
        label=label,
        outcome=outcome,
        scheduled_s=arrival_s,
        sent_s=arrival_s,
        ended_s=token_times_s[-1],
        piece_times_s=pieces_s,
        num_output_tokens=len(token_times_s),
    )


def summarize(records: Sequence[RequestRecord]) -> Summary:
    """Sum up the records of a whole trace, at least one."""
    completed = [record for record in records if record.outcome is Outcome.COMPLETED]
    duration_s = max(record.ended_s for record in records)
    num_tokens = sum(record.num_output_tokens for record in completed)
    found = {latency.tag: latency.measure(records) for latency in _LATENCIES}
    return Summary(
        num_requests=len(records),
        num_failed=len(records) - len(completed),
        num_tokens=num_tokens,
        duration_s=duration_s,
        tokens_per_s=num_tokens / duration_s,
        backlog_s=duration_s - max(record.scheduled_s for record in records),
        latencies_ms={tag: _figures(values) if values else None for tag, values in found.items()},
    )


def _figures(values: Distribution) -> dict[str, float]:
    return {name: value for name, value in asdict(values).items() if name != "hdr"}
