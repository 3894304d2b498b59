import json
from io import StringIO

from rich.console import Console

from loadtest.metrics import Slo
from loadtest.records import Outcome, RequestRecord
from loadtest.report import render, summarize_run

RECORDS = [
    RequestRecord("a", Outcome.COMPLETED, 0.0, 0.0, 1.0, (0.2, 0.4), 3, "stop"),
    RequestRecord("base", Outcome.COMPLETED, 0.5, 0.5, 2.0, (0.6, 0.9), 5, "length"),
    RequestRecord("a", Outcome.FAILED, 1.0, 1.0, 1.1, error_code="NOT_FOUND", error_message="no such adapter"),
    RequestRecord("a", Outcome.DROPPED, 1.5, 1.5, 1.5, error_code="DROPPED_BY_CLIENT", error_message="full"),
]
REPORT = summarize_run(RECORDS, Slo(e2e_ms=1200.0), {"rate": 2.0})


def test_report_counts_every_request_once() -> None:
    total = REPORT.total
    assert total.outcomes == {"completed": 2, "failed": 1, "dropped": 1}
    assert sum(total.outcomes.values()) == len(RECORDS)
    assert total.errors == {"DROPPED_BY_CLIENT": 1, "NOT_FOUND": 1}
    assert total.finish_reasons == {"length": 1, "stop": 1}
    assert REPORT.duration_s == 2.0
    assert total.rates == {"requests_per_s": 1.0, "output_tokens_per_s": 4.0, "goodput_per_s": 0.5}
    assert REPORT.adapters["a"].outcomes == {"completed": 1, "failed": 1, "dropped": 1}
    assert REPORT.adapters["base"].rates["requests_per_s"] == 0.5


def test_report_json_form_is_stable() -> None:
    form = json.loads(json.dumps(REPORT.as_json()))
    assert form["schema_version"] == 1
    assert set(form) == {
        "schema_version", "config", "duration_s", "total", "adapters", "client_lag", "error_examples",
    }  # fmt: skip
    part = {"outcomes", "errors", "finish_reasons", "num_output_tokens", "rates", "latencies"}
    assert set(form["total"]) == set(form["adapters"]["a"]) == part
    assert set(form["total"]["latencies"]) == {"ttft", "itl", "tpot", "e2e"}
    assert set(form["total"]["latencies"]["e2e"]) == {"count", "mean", "p50", "p90", "p99", "max"}
    assert form["config"] == {"rate": 2.0}


def test_report_tables_show_figures_and_errors() -> None:
    console = Console(file=StringIO(), width=200)
    console.print(render(REPORT))
    text = console.file.getvalue()
    for expected in ("TTFT", "ITL", "TPOT", "e2e", "p99", "goodput", "0.50", "no such adapter", "base", "client lag"):
        assert expected in text


def test_report_nothing_completed_shows_dashes() -> None:
    report = summarize_run(RECORDS[2:], Slo(), {})
    assert report.total.latencies["e2e"] is None
    console = Console(file=StringIO(), width=200)
    console.print(render(report))
    assert "-" in console.file.getvalue()
