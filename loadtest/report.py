"""A run summed up: one plain structure, written as JSON and shown as tables. Knows no clients.

The JSON's form is the contract of whoever reads it later: fields may be added, and ``schema_version`` grows when one
changes its meaning or goes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.metrics import (
    LATENCIES,
    Distribution,
    Goodput,
    RequestThroughput,
    RunMetric,
    Slo,
    TokenThroughput,
    client_lag,
)
from loadtest.records import Outcome, RequestRecord

SCHEMA_VERSION = 1

_PERCENTILES = ("mean", "p50", "p90", "p99", "max")


@dataclass(frozen=True, slots=True)
class Part:
    """Figures of all requests, or of one kind.

    Attributes:
        outcomes: How many requests completed, failed and were dropped.
        errors: How many requests ended with each error code.
        finish_reasons: How many completed requests ended for each reason.
        num_output_tokens: Tokens generated in completed requests.
        rates: Run metrics by tag.
        latencies: Distributions in milliseconds by tag; None where nothing could be measured.
    """

    outcomes: Mapping[str, int]
    errors: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    num_output_tokens: int
    rates: Mapping[str, float]
    latencies: Mapping[str, Distribution | None]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        config: What was asked for, as given.
        duration_s: From the start of the run until the last request ended.
        total: Figures of all requests.
        adapters: Figures of each kind of request, by its label.
        client_lag: How late requests were sent, in milliseconds.
        error_examples: One message for each error code.
        schema_version: Version of this form.
    """

    config: Mapping[str, object]
    duration_s: float
    total: Part
    adapters: Mapping[str, Part]
    client_lag: Distribution | None
    error_examples: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    def as_json(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return asdict(self)


def summarize_run(records: Sequence[RequestRecord], slo: Slo, config: Mapping[str, object]) -> Report:
    """Sum up a run.

    Args:
        records: Every request of the run, at least one.
        slo: Bounds for the goodput.
        config: What was asked for, kept in the report as given.
    """
    duration_s = max(record.ended_s for record in records)
    labels = sorted({record.label for record in records})
    return Report(
        config=config,
        duration_s=duration_s,
        total=_part(records, duration_s, slo),
        adapters={
            label: _part([record for record in records if record.label == label], duration_s, slo) for label in labels
        },
        client_lag=client_lag(records),
        error_examples={record.error_code: record.error_message for record in records if record.error_code},
    )


def _run_metrics(slo: Slo) -> tuple[RunMetric, ...]:
    return RequestThroughput(), TokenThroughput(), Goodput(slo)


def _part(records: Sequence[RequestRecord], duration_s: float, slo: Slo) -> Part:
    outcomes = Counter(record.outcome for record in records)
    return Part(
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        errors=dict(sorted(Counter(record.error_code for record in records if record.error_code).items())),
        finish_reasons=dict(sorted(Counter(r.finish_reason for r in records if r.finish_reason).items())),
        num_output_tokens=sum(record.num_output_tokens for record in records),
        rates={metric.tag: metric.measure(records, duration_s) for metric in _run_metrics(slo)},
        latencies={latency.tag: latency.measure(records) for latency in LATENCIES},
    )


def render(report: Report) -> RenderableType:
    """Return the tables a person reads."""
    tables = [_latency_table(report), _rate_table(report)]
    if len(report.adapters) > 1:
        tables += [_adapter_latency_table(report), _adapter_table(report)]
    if report.total.errors:
        tables.append(_error_table(report))
    return Group(*tables)


def _latency_table(report: Report) -> Table:
    table = Table("latency", *_PERCENTILES, "formula", title="Latency, ms")
    _align_numbers(table, last=len(_PERCENTILES))
    for latency in LATENCIES:
        table.add_row(latency.title, *_cells(report.total.latencies[latency.tag], _PERCENTILES), latency.formula)
    table.add_row("client lag", *_cells(report.client_lag, _PERCENTILES), "sent - scheduled", style="dim")
    return table


def _rate_table(report: Report) -> Table:
    table = Table("rate", "value", "unit", "formula", title=f"Over {report.duration_s:.1f} s")
    _align_numbers(table, last=1)
    for metric in _run_metrics(Slo()):
        table.add_row(metric.title, f"{report.total.rates[metric.tag]:.2f}", metric.unit, metric.formula)
    for outcome, count in report.total.outcomes.items():
        table.add_row(outcome, str(count), "requests", "")
    return table


def _adapter_table(report: Report) -> Table:
    columns = ("adapters", *(outcome.value for outcome in Outcome), *(m.title for m in _run_metrics(Slo())))
    table = Table(*columns, title="By adapter, rates per s")
    _align_numbers(table, last=len(columns) - 1)
    for label, part in report.adapters.items():
        rates = [f"{part.rates[metric.tag]:.2f}" for metric in _run_metrics(Slo())]
        table.add_row(label, *(str(part.outcomes[outcome.value]) for outcome in Outcome), *rates)
    return table


def _adapter_latency_table(report: Report) -> Table:
    table = Table("adapters", "latency", *_PERCENTILES, title="Latency by adapter, ms")
    _align_numbers(table, last=1 + len(_PERCENTILES))
    for label, part in report.adapters.items():
        for latency in LATENCIES:
            table.add_row(label, latency.title, *_cells(part.latencies[latency.tag], _PERCENTILES))
        table.add_section()
    return table


def _error_table(report: Report) -> Table:
    table = Table("error", "requests", "for example", title="Errors")
    _align_numbers(table, last=1)
    for code, count in report.total.errors.items():
        table.add_row(code, str(count), Text(report.error_examples[code]))
    return table


def _align_numbers(table: Table, last: int) -> None:
    """Right-align the columns from the second to ``last``, and show the first in full."""
    table.columns[0].overflow = "fold"
    for column in table.columns[1 : last + 1]:
        column.justify = "right"
        column.no_wrap = True


def _cells(sample: Distribution | None, names: Sequence[str]) -> list[str]:
    return ["-" if sample is None else f"{getattr(sample, name):.1f}" for name in names]
