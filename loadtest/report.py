"""A run summed up: one plain structure, written as JSON. Knows no clients, and not how it is shown.

The JSON's form is the contract of whoever reads it later: fields may be added, and ``schema_version`` grows when one
changes its meaning or goes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass

from loadtest.histogram import Distribution
from loadtest.metrics import (
    LATENCIES,
    Goodput,
    RequestThroughput,
    RunMetric,
    Slo,
    TokenThroughput,
    client_lag,
)
from loadtest.records import Outcome, RequestRecord, is_measured
from loadtest.timeline import Event, Reading

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Part:
    """Figures of all requests, or of one kind.

    Attributes:
        outcomes: How many requests completed, failed and were dropped.
        errors: How many requests ended with each error code.
        finish_reasons: How many completed requests ended for each reason.
        num_prompt_tokens: Tokens of completed requests' prompts.
        num_output_tokens: Tokens generated in completed requests.
        rates: Run metrics by tag.
        latencies: Distributions in milliseconds by tag; None where nothing could be measured.
    """

    outcomes: Mapping[str, int]
    errors: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    num_prompt_tokens: int
    num_output_tokens: int
    rates: Mapping[str, float]
    latencies: Mapping[str, Distribution | None]


@dataclass(frozen=True, slots=True)
class ChurnPart:
    """What changes of adapters did to requests.

    Attributes:
        events: How many changes of each kind there were.
        errors: How many changes failed with each error code.
        changed: Figures of requests to adapters that were changed; None if there were none.
        bystanders: Figures of all other requests; None if there were none.
    """

    events: Mapping[str, int]
    errors: Mapping[str, int]
    changed: Part | None
    bystanders: Part | None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run, its warm-up left out.

    Attributes:
        config: What was asked for: the scenario, every default written out.
        duration_s: From the start of the measured part until its last request ended.
        total: Figures of all requests.
        adapters: Figures of each kind of request, by its label.
        client_lag: How late requests were sent, in milliseconds.
        error_examples: One message for each error code.
        num_warm_up: Requests of the warm-up, in no figure.
        churn: What changes of adapters did; None if there were none.
        num_adapter_loads: Adapters the server brought to its device in the measured part; None if it did not tell.
        schema_version: Version of this form.
    """

    config: Mapping[str, object]
    duration_s: float
    total: Part
    adapters: Mapping[str, Part]
    client_lag: Distribution | None
    error_examples: Mapping[str, str]
    num_warm_up: int = 0
    churn: ChurnPart | None = None
    num_adapter_loads: int | None = None
    schema_version: int = SCHEMA_VERSION

    def as_json(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return asdict(self)


def summarize_run(
    records: Sequence[RequestRecord],
    slo: Slo,
    config: Mapping[str, object],
    events: Sequence[Event] = (),
    readings: Sequence[Reading] = (),
) -> Report:
    """Sum up a run.

    Args:
        records: Every request of the run, at least one of them measured.
        slo: Bounds for the goodput.
        config: What was asked for, kept in the report as given.
        events: Changes of adapters meanwhile.
        readings: The server's counters meanwhile.

    Raises:
        ValueError: If no request was measured.
    """
    measured = [record for record in records if is_measured(record)]
    if not measured:
        raise ValueError("no request was measured")
    # A run whose requests all failed at once still took a moment.
    duration_s = max(1e-6, *(record.ended_s for record in measured))
    by_label: dict[str, list[RequestRecord]] = {}
    for record in measured:
        by_label.setdefault(record.label, []).append(record)
    return Report(
        config=config,
        duration_s=duration_s,
        total=_part(measured, duration_s, slo, encode=True),
        adapters={label: _part(by_label[label], duration_s, slo) for label in sorted(by_label)},
        client_lag=client_lag(measured),
        error_examples={record.error_code: record.error_message for record in measured if record.error_code},
        num_warm_up=len(records) - len(measured),
        churn=_churn(measured, events, duration_s, slo) if events else None,
        num_adapter_loads=_num_loads(readings),
    )


def _num_loads(readings: Sequence[Reading]) -> int | None:
    """Return how many adapters were loaded from the end of the warm-up on."""
    if not readings:
        return None
    before = [reading for reading in readings if reading.at_s <= 0]
    return readings[-1].num_loads - (before[-1] if before else readings[0]).num_loads


def is_bystander(record: RequestRecord, changed: Set[str]) -> bool:
    """Say whether a request asked for none of the adapters that were changed."""
    names = {reference.partition(":")[0].partition("@")[0] for reference in record.label.split("+")}
    return not names & changed


def _churn(records: Sequence[RequestRecord], events: Sequence[Event], duration_s: float, slo: Slo) -> ChurnPart:
    names = {event.name for event in events}
    bystanders = [record for record in records if is_bystander(record, names)]
    changed = [record for record in records if not is_bystander(record, names)]
    return ChurnPart(
        events=dict(sorted(Counter(event.change.value for event in events).items())),
        errors=dict(sorted(Counter(event.error_code for event in events if event.error_code).items())),
        changed=_part(changed, duration_s, slo, encode=True) if changed else None,
        bystanders=_part(bystanders, duration_s, slo, encode=True) if bystanders else None,
    )


def run_metrics(slo: Slo) -> tuple[RunMetric, ...]:
    """Return the figures of a whole run, in the order they are shown in."""
    return RequestThroughput(), TokenThroughput(), Goodput(slo)


def _part(records: Sequence[RequestRecord], duration_s: float, slo: Slo, *, encode: bool = False) -> Part:
    outcomes = Counter(record.outcome for record in records)
    return Part(
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        errors=dict(sorted(Counter(record.error_code for record in records if record.error_code).items())),
        finish_reasons=dict(sorted(Counter(r.finish_reason for r in records if r.finish_reason).items())),
        num_prompt_tokens=sum(record.num_prompt_tokens for record in records),
        num_output_tokens=sum(record.num_output_tokens for record in records),
        rates={metric.tag: metric.measure(records, duration_s) for metric in run_metrics(slo)},
        latencies={latency.tag: latency.measure(records, encode=encode) for latency in LATENCIES},
    )
