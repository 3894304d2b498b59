"""Figures as tables, for a terminal and for the page."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.comparison import Comparison, Side
from loadtest.histogram import Distribution
from loadtest.metrics import LATENCIES, Slo
from loadtest.records import Outcome
from loadtest.report import ChurnPart, Part, Report, run_metrics
from loadtest.sweep import Sweep

PERCENTILES = ("mean", "p50", "p90", "p99", "p999", "max")
_MAX_ADAPTERS = 20


def render(report: Report) -> RenderableType:
    """Return the tables a person reads."""
    return Group(*tables_of(report))


def tables_of(report: Report) -> list[Table]:
    """Return the tables of a run."""
    tables = [_latency_table(report), _rate_table(report)]
    if len(report.adapters) > 1:
        busiest = _busiest(report)
        title = "By adapter" if len(busiest) == len(report.adapters) else f"The {len(busiest)} busiest adapters"
        tables += [_part_latency_table(busiest, f"{title}: latency, ms"), _part_table(busiest, f"{title}: rates per s")]
    if report.churn is not None:
        tables += _churn_tables(report.churn)
    if report.total.errors:
        tables.append(_error_table(report))
    return tables


def _latency_table(report: Report) -> Table:
    table = Table("latency", *PERCENTILES, "formula", title="Latency, ms")
    _align_numbers(table, last=len(PERCENTILES))
    for latency in LATENCIES:
        table.add_row(latency.title, *_cells(report.total.latencies[latency.tag], PERCENTILES), latency.formula)
    table.add_row("client lag", *_cells(report.client_lag, PERCENTILES), "sent - scheduled", style="dim")
    return table


def _rate_table(report: Report) -> Table:
    table = Table("rate", "value", "unit", "formula", title=f"Over {report.duration_s:.1f} s")
    _align_numbers(table, last=1)
    for metric in run_metrics(Slo()):
        table.add_row(metric.title, f"{report.total.rates[metric.tag]:.2f}", metric.unit, metric.formula)
    for outcome, count in report.total.outcomes.items():
        table.add_row(outcome, str(count), "requests", "")
    return table


def _busiest(report: Report) -> dict[str, Part]:
    """Return the adapters with the most requests, in the order of their names; a terminal has no room for thousands."""
    by_requests = sorted(report.adapters, key=lambda label: -sum(report.adapters[label].outcomes.values()))
    return {label: report.adapters[label] for label in sorted(by_requests[:_MAX_ADAPTERS])}


def _part_table(parts: Mapping[str, Part], title: str) -> Table:
    columns = ("requests to", *(outcome.value for outcome in Outcome), *(m.title for m in run_metrics(Slo())))
    table = Table(*columns, title=title)
    _align_numbers(table, last=len(columns) - 1)
    for label, part in parts.items():
        rates = [f"{part.rates[metric.tag]:.2f}" for metric in run_metrics(Slo())]
        table.add_row(label, *(str(part.outcomes[outcome.value]) for outcome in Outcome), *rates)
    return table


def _part_latency_table(parts: Mapping[str, Part], title: str) -> Table:
    table = Table("requests to", "latency", *PERCENTILES, title=title)
    _align_numbers(table, last=1 + len(PERCENTILES))
    for label, part in parts.items():
        for latency in LATENCIES:
            table.add_row(label, latency.title, *_cells(part.latencies[latency.tag], PERCENTILES))
        table.add_section()
    return table


def _churn_tables(churn: ChurnPart) -> list[Table]:
    parts = {"changed adapters": churn.changed, "bystanders": churn.bystanders}
    there = {label: part for label, part in parts.items() if part is not None}
    done = ", ".join(f"{count} {change}" for change, count in churn.events.items())
    failed = ", ".join(f"{count} {code}" for code, count in churn.errors.items()) or "none failed"
    title = f"Changes of adapters ({done}; {failed})"
    return [_part_latency_table(there, f"{title}: latency, ms"), _part_table(there, "… and rates per s")]


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


def sweep_table(sweep: Sweep) -> Table:
    """Return a sweep's runs as a table."""
    names = ("ttft_p50", "ttft_p99", "tpot_p50", "e2e_p50", "e2e_p99")
    head = ("offered/s", "throughput/s", "goodput/s", "good", *(name.replace("_", " ") for name in names), "")
    table = Table(*head, title="Sweep, latencies in ms")
    _align_numbers(table, last=len(head) - 2)
    for point in sweep.points:
        latencies = [f"{point.latencies_ms[name]:.1f}" if name in point.latencies_ms else "-" for name in names]
        mark = "knee" if point is sweep.knee else "" if point.is_good else "too much"
        rates = [f"{rate:.2f}" for rate in (point.rate, point.requests_per_s, point.goodput_per_s)]
        table.add_row(*rates, f"{point.good_share:.1%}", *latencies, mark)
    return table


def runs_table(sides: Sequence[Side]) -> Table:
    """Return the main figures of several runs, a line each."""
    names = [(tag, name) for tag in ("ttft", "tpot", "e2e") for name in ("p50", "p99")]
    heads = [f"{tag} {name}" for tag, name in names]
    table = Table("run", "kinds asked", *(metric.title for metric in run_metrics(Slo())), *heads, "failed", "loads")
    table.title = "Runs, rates per s and latencies in ms"
    _align_numbers(table, last=len(table.columns) - 1)
    for side in sides:
        total = side.report.total
        rates = [f"{total.rates[metric.tag]:.2f}" for metric in run_metrics(Slo())]
        latencies = [_cells(total.latencies[tag], (name,))[0] for tag, name in names]
        num_failed = total.outcomes[Outcome.FAILED] + total.outcomes[Outcome.DROPPED]
        loads = side.report.num_adapter_loads
        ends = (str(num_failed), "-" if loads is None else str(loads))
        table.add_row(side.title, str(len(side.report.adapters)), *rates, *latencies, *ends)
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return two runs side by side as tables."""
    first, second = comparison.titles
    table = Table("figure", "unit", first, second, "ratio", "95 % interval", title=f"{second} against {first}")
    _align_numbers(table, last=5)
    for row in comparison.rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        interval = "-" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
        table.add_row(row.title, row.unit, f"{row.first:.2f}", f"{row.second:.2f}", ratio, interval)
    tables = [table]
    codes = sorted({*comparison.errors[0], *comparison.errors[1]})
    if codes:
        errors = Table("error", first, second, title="Errors, requests")
        for code in codes:
            errors.add_row(code, *(str(each.get(code, 0)) for each in comparison.errors))
        tables.append(errors)
    if comparison.differences:
        asked = Table("key", first, second, title="Asked differently")
        for key, values in comparison.differences.items():
            asked.add_row(key, *(Text(str(value)) for value in values))
        tables.append(asked)
    return tables
