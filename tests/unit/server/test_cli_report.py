"""``medley eval report``: what a server says of its traffic, in full or as an older one says it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import server.cli
from server.cli.evaluation.report import WindowMean, reports_of
from tests.fixtures.scripted_server import Answer, ScriptedServer, scripted_server

WINDOW = {"start_s": 1795830000, "end_s": 1795833600, "num_finished": 10, "num_scored": 4}
FULL = {
    "adapters": "dialogsum:1",
    "num_finished": 120,
    "num_errors": 3,
    "num_scored": 40,
    "means": {"rougeL": 25.0},
    "metrics": {
        "rougeL": {"count": 40, "mean": 25.0, "low": 23.1, "high": 26.8, "p10": 12.0, "p50": 24.5, "p90": 39.0},
        "copy_rate": {"count": 117, "mean": 61.5},
    },
    "windows": [
        WINDOW | {"end_s": 1795837200, "means": {"rougeL": 27.0}, "low": {"rougeL": 26.0}, "high": {"rougeL": 28.0}},
        WINDOW | {"means": {"rougeL": 25.0}},
        WINDOW | {"means": {}},
    ],
    "drift": {
        "prompt_tokens": {"statistic": 0.5, "p_value": 0.001, "drifted": True},
        "copy_rate": {"statistic": 0.1, "p_value": 0.4, "drifted": False},
    },
}
OLD = {"adapters": "base", "num_scored": 2, "means": {"rouge1": 20.25}}
PAIR = {"adapters": "tweets:2+dialogsum:3", "num_scored": 0, "means": {}}


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        script.answers = [Answer(body={"evaluations": [FULL, OLD, PAIR]})]
        yield script


def run(script: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(server.cli.app, ["eval", "report", "--server", script.url, *arguments])


def rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]


def test_report_shows_what_the_server_says_and_a_mark_for_what_it_does_not(script: ScriptedServer) -> None:
    done = run(script)
    assert done.exit_code == 0, done.output
    assert rows(done.stdout) == [
        ["dialogsum:1", "120", "3", "40", "prompt_tokens"],
        ["base", "?", "?", "2", "?"],
        ["tweets:2+dialogsum:3", "?", "?", "0", "?"],
        ["dialogsum:1", "rougeL", "40", "25.00", "23.10 - 26.80", "12.00", "24.50", "39.00"],
        ["dialogsum:1", "copy_rate", "117", "61.50", "?", "?", "?", "?"],
        ["base", "rouge1", "2", "20.25", "?", "?", "?", "?"],
    ]
    assert script.sent[0].path == "/v1/evaluations?window_s=3600&num_windows=24"


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("dialogsum", ["dialogsum:1", "tweets:2+dialogsum:3"]),
        ("dialogsum:1", ["dialogsum:1"]),
        ("base", ["base"]),
        ("dialog", []),
    ],
)
def test_report_of_one_adapter_leaves_out_the_others_also_from_a_server_that_does_not(
    script: ScriptedServer, adapter: str, expected: list[str]
) -> None:
    done = run(script, "--adapter", adapter, "--json", "--window", "60", "--num-windows", "2")
    assert [entry["adapters"] for entry in json.loads(done.stdout)["evaluations"]] == expected
    asked = script.sent[0].path.partition("?")[2].split("&")
    assert set(asked) == {"window_s=60", "num_windows=2", f"adapter={adapter.partition(':')[0]}"}


def test_report_reads_windows_in_order_and_passes_over_those_without_the_metric() -> None:
    [report] = reports_of({"evaluations": [FULL]}, None)
    assert report.windows == {"rougeL": [WindowMean(1795833600, 25.0), WindowMean(1795837200, 27.0, 26.0, 28.0)]}


@pytest.mark.parametrize(
    ("drift", "words"),
    [({}, "?"), ({"prompt_tokens": {"statistic": 0.1, "p_value": 0.4, "drifted": False}}, "no")],
    ids=["too-few-requests", "none"],
)
def test_report_says_that_nothing_drifted_only_where_something_was_compared(
    script: ScriptedServer, drift: dict[str, object], words: str
) -> None:
    script.answers = [Answer(body={"evaluations": [FULL | {"drift": drift}]})]
    assert rows(run(script).stdout)[0][-1] == words


def test_report_draws_a_metric_over_time(script: ScriptedServer, tmp_path: Path) -> None:
    done = run(script, "--plot", str(tmp_path / "report.png"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_the_metric_over_time_still_has_its_table(script: ScriptedServer, tmp_path: Path) -> None:
    done = run(script, "--plot", str(tmp_path / "report.png"), "--metric", "chrf_sentence")
    assert done.exit_code == 1
    assert done.stderr == "medley: FAILED_PRECONDITION: no picture: the server tells of no chrf_sentence over time\n"
    assert "dialogsum:1" in done.stdout
    assert not (tmp_path / "report.png").exists()


@pytest.mark.parametrize("body", [{}, {"evaluations": {}}, {"evaluations": ["x"]}, {"evaluations": [{}]}])
def test_report_of_something_else_is_one_line(script: ScriptedServer, body: object) -> None:
    script.answers = [Answer(body=body)]
    done = run(script)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "is --server right?" in done.stderr


def test_report_of_a_server_that_scored_nothing_says_so(script: ScriptedServer) -> None:
    script.answers = [Answer(body={"evaluations": []})]
    assert "nothing was evaluated yet" in run(script).stdout
