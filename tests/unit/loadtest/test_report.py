import json
from io import StringIO

import pytest
from rich.console import Console

from loadtest.metrics import Slo
from loadtest.records import Outcome, RequestRecord
from loadtest.report import summarize_run
from loadtest.tables import render
from loadtest.timeline import Change, Event, Reading

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
    assert form["schema_version"] == 2
    assert set(form) == {
        "schema_version", "config", "duration_s", "total", "adapters", "client_lag", "error_examples",
        "num_warm_up", "churn", "num_adapter_loads",
    }  # fmt: skip
    part = {"outcomes", "errors", "finish_reasons", "num_prompt_tokens", "num_output_tokens", "rates", "latencies"}
    assert set(form["total"]) == set(form["adapters"]["a"]) == part
    assert set(form["total"]["latencies"]) == {"ttft", "itl", "tpot", "e2e"}
    assert set(form["total"]["latencies"]["e2e"]) == {"count", "mean", "p50", "p90", "p99", "p999", "max", "hdr"}
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


def test_report_leaves_the_warm_up_out() -> None:
    early = RequestRecord("cold", Outcome.COMPLETED, -1.0, -1.0, 5.0, (), 3, "stop")
    report = summarize_run([early, *RECORDS], Slo(), {})
    assert (report.num_warm_up, report.duration_s) == (1, 2.0)
    assert report.total == summarize_run(RECORDS, Slo(), {}).total
    assert "cold" not in report.adapters
    with pytest.raises(ValueError, match="no request was measured"):
        summarize_run([early], Slo(), {})


def test_report_tells_bystanders_from_changed_adapters() -> None:
    records = [
        RequestRecord("a@canary+p", Outcome.COMPLETED, 0.0, 0.0, 1.0, (), 3, "stop"),
        RequestRecord("a:2", Outcome.COMPLETED, 0.0, 0.0, 2.0, (), 3, "stop"),
        RequestRecord("ab", Outcome.COMPLETED, 0.0, 0.0, 0.25, (), 3, "stop"),
        RequestRecord("base", Outcome.COMPLETED, 0.0, 0.0, 0.25, (), 3, "stop"),
    ]
    events = [Event(Change.UPLOAD, "a", 1, 0.1, 0.2), Event(Change.DELETE, "a", 1, 0.3, 0.4, "FAILED_PRECONDITION")]
    readings = [Reading(-1.0, 1, 0), Reading(-0.1, 3, 0), Reading(1.0, 10, 2)]
    report = summarize_run(records, Slo(), {}, events, readings)
    churn = report.churn
    assert churn is not None
    assert (churn.events, churn.errors) == ({"delete": 1, "upload": 1}, {"FAILED_PRECONDITION": 1})
    assert churn.changed is not None
    assert churn.bystanders is not None
    assert (churn.changed.latencies["e2e"].max, churn.bystanders.latencies["e2e"].max) == (2000.0, 250.0)
    assert (churn.changed.latencies["e2e"].count, churn.bystanders.latencies["e2e"].count) == (2, 2)
    assert report.num_adapter_loads == 7
    console = Console(file=StringIO(), width=200)
    console.print(render(report))
    assert "bystanders" in console.file.getvalue()
