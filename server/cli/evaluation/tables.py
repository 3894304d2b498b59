"""Replays and reports as tables for people. Knows no server and no options."""

from collections.abc import Iterable, Sequence

from adapters.scoring.bootstrap import Interval
from server.cli.evaluation.report import EvaluationReport
from server.cli.evaluation.summary import ReplaySummary
from server.cli.tables import print_table

_UNKNOWN = "?"


def print_replay(summary: ReplaySummary) -> None:
    """Print a line for each system, then one for each pair of them; ``*`` marks what is beyond chance."""
    names = _all_names(system.figures for system in summary.systems)
    print_table(
        ("adapters", "served by", "answered", "errors", *names, "p50, p99 ms"),
        (
            (
                system.system,
                " ".join(system.served),
                f"{system.num_answered}/{summary.num_cases}",
                " ".join(f"{code}={number}" for code, number in system.errors.items()) or "0",
                *(_interval(system.figures.get(name)) for name in names),
                f"{system.latency_p50_ms:.0f}, {system.latency_p99_ms:.0f}",
            )
            for system in summary.systems
        ),
        "nothing was played",
    )
    if summary.comparisons:
        names = _all_names(pair.differences for pair in summary.comparisons)
        print_table(
            ("difference on the same cases", "cases", *names),
            (
                (
                    f"{pair.first} - {pair.second}",
                    str(pair.num_cases),
                    *(_difference(pair.differences.get(name)) for name in names),
                )
                for pair in summary.comparisons
            ),
            "",
        )


def print_reports(reports: Sequence[EvaluationReport]) -> None:
    """Print a line for each adapter combination, then one for each of its metrics; ``?`` is what the server omits."""
    print_table(
        ("adapters", "finished", "errors", "scored", "drifted"),
        (
            (
                report.adapters,
                _shown(report.num_finished, ".0f"),
                _shown(report.num_errors, ".0f"),
                str(report.num_scored),
                _UNKNOWN if report.drifted is None else " ".join(report.drifted) or "no",
            )
            for report in reports
        ),
        "nothing was evaluated yet; requests with references are, and those sampled",
    )
    if any(report.metrics for report in reports):
        print_table(
            ("adapters", "metric", "count", "mean", "interval", "p10", "p50", "p90"),
            (
                (
                    report.adapters,
                    metric.name,
                    str(metric.count),
                    f"{metric.mean:.2f}",
                    _UNKNOWN if metric.low is None else f"{metric.low:.2f} - {_shown(metric.high)}",
                    *(_shown(value) for value in (metric.p10, metric.p50, metric.p90)),
                )
                for report in reports
                for metric in report.metrics
            ),
            "",
        )


def _all_names(figures: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in figures for name in names))


def _interval(interval: Interval | None) -> str:
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]" if interval else ""


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return ""
    mark = "*" if interval.is_clear else ""
    return f"{interval.value:+.1f}{mark} [{interval.low:+.1f}, {interval.high:+.1f}]"


def _shown(value: float | None, form: str = ".2f") -> str:
    return _UNKNOWN if value is None else format(value, form)
