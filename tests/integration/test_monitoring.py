"""The dashboard and the alert rules name only what the server shows, and alerts fire when they should and only then."""

import asyncio
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import adapters.errors
import server.core.errors
from adapters.scoring.rouge import METRICS
from server.core.errors import ErrorCode
from server.evaluation.evaluator import EvaluationConfig
from tests.fixtures.metrics_page import families, touch
from tests.fixtures.promql import Expression, Selector, read
from tests.fixtures.running_server import fake_engine, running_server

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
RULE_TESTS: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.test.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
PAGE = (FOLDER.parent / "monitoring.md").read_text()

ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
# Prometheus adds them to whatever it scrapes.
OF_PROMETHEUS = frozenset({"instance", "job"})
Series = Mapping[str, frozenset[str]]
# Metrics that the dashboard leaves out on purpose.
NOT_SHOWN: set[str] = set()
# What the values of a label can be, where that is settled; all others are free.
VALUES = {
    "code": {"OK", *ErrorCode},
    "stage": {"upload", "lookup", "serving"},
    "outcome": {"sent", "failed", "dropped"},
    "metric": set(METRICS),
    "reason": {name for module in (adapters.errors, server.core.errors) for name in dir(module) if "Error" in name},
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def panels(among: list[dict[str, Any]] = DASHBOARD["panels"]) -> Iterator[dict[str, Any]]:
    for panel in among:
        yield panel
        yield from panels(panel.get("panels", []))


def targets() -> list[tuple[str, str, str]]:
    """Title, expression and legend of every query of the dashboard, with Grafana's own variables filled in."""
    return [
        (panel["title"], _filled(target["expr"]), target["legendFormat"])
        for panel in panels()
        for target in panel.get("targets", [])
    ]


def variables() -> list[str]:
    return [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def _filled(text: str) -> str:
    filled = text.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$adapters", ".*")
    assert "$" not in filled, text
    return filled


EXPRESSIONS = [
    *((f"alert {name}", rule["expr"]) for name, rule in ALERTS.items()),
    *((f"panel {title}: {expression}", expression) for title, expression, _ in targets()),
]
each_expression = pytest.mark.parametrize(
    "text", [text for _, text in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS]
)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """Every series of a real server's page, with its labels."""
    found: dict[str, frozenset[str]] = {}
    for family in families(asyncio.run(_page(tmp_path_factory.mktemp("server")))).values():
        found |= family.series
    return found


async def _page(data_dir: Path) -> str:
    quick = EvaluationConfig(warm_at_start=False)
    async with (
        running_server(data_dir, fake_engine(), evaluation=quick) as running,
        httpx.AsyncClient(base_url=running.http) as client,
    ):
        touch(running.container.services.metrics.registry)
        return (await client.get("/metrics")).text


def check(expression: Expression, series: Series) -> None:
    assert expression.selectors
    for selector in expression.selectors:
        assert selector.name in series, f"the server shows no {selector.name}"
        check_matchers(selector, series[selector.name] | OF_PROMETHEUS)
    known = frozenset().union(*(series[selector.name] for selector in expression.selectors)) | OF_PROMETHEUS
    assert expression.groupings <= known, expression.groupings - known


def check_matchers(selector: Selector, labels: frozenset[str]) -> None:
    for label, operator, value in selector.matchers:
        assert label in labels, f"{selector.name} has no label {label}"
        words = value.split("|") if "~" in operator else [value]
        if label in VALUES and words != [".*"]:
            assert set(words) <= VALUES[label], f"{label} is never {set(words) - VALUES[label]}"


@each_expression
def test_expression_names_only_what_the_server_shows(text: str, series: Series) -> None:
    check(read(text), series)


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(medley_request_total[5m])",
        'medley_requests_total{status="OK"}',
        'medley_requests_total{code="FINE"}',
        "sum by (model) (medley_requests_total)",
        'sum without (code) (medley_requests_total{code=~"OK|BROKEN"})',
        "medley_request_ttft_seconds",
    ],
)
def test_expression_that_names_something_else_is_found(wrong: str, series: Series) -> None:
    with pytest.raises(AssertionError):
        check(read(wrong), series)


def test_legends_name_labels_that_their_expressions_keep(series: Series) -> None:
    for title, text, legend in targets():
        labels = set(re.findall(r"{{(\w+)}}", legend))
        grouped = read(text).groupings
        kept = (
            grouped if re.search(r"\b(sum|min|max)\b", text) else series[read(text).selectors[0].name] | OF_PROMETHEUS
        )
        assert labels <= kept, f"{title}: {labels - kept}"


def test_variables_of_the_dashboard_list_labels_that_there_are(series: Series) -> None:
    assert len(variables()) == 2
    for query in variables():
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert match
        assert match[2] in series[match[1]] | OF_PROMETHEUS


def test_dashboard_shows_every_metric_there_is(series: Series) -> None:
    shown = {selector.name for _, text, _ in targets() for selector in read(text).selectors}
    assert _without_suffixes(shown) | NOT_SHOWN == _without_suffixes(series)
    assert not _without_suffixes(shown) & NOT_SHOWN


def _without_suffixes(names: Iterable[str]) -> set[str]:
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in names}


def test_dashboard_is_well_formed_and_reaches_no_other_host() -> None:
    text = (FOLDER / "grafana-dashboard.json").read_text()
    assert "://" not in text
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    places: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        places |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert {target["refId"] for target in panel["targets"]}
            assert panel["datasource"]["uid"] == "${datasource}"


def test_every_alert_is_in_the_page_and_says_how_bad_it_is() -> None:
    assert set(re.findall(r"^\| `(Medley\w+)` \|", PAGE, re.MULTILINE)) == set(ALERTS)
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"].endswith(".")


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@needs_promtool
def test_alert_rules_are_well_formed() -> None:
    done = promtool("check", "rules", "alerts.yaml")
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@needs_promtool
def test_expressions_of_the_dashboard_are_well_formed(tmp_path: Path) -> None:
    rules = [{"record": f"medley:panel{index}", "expr": text} for index, (_, text, _) in enumerate(targets())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "panels.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@needs_promtool
@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", "alerts.test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_firing_and_silent() -> None:
    cases = [case for test in RULE_TESTS["tests"] for case in test["alert_rule_test"]]
    for name in ALERTS:
        assert {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name} == {True, False}, name


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("expression", ["vector(1) > 2", "vector(1)"], ids=["never", "always"])
@pytest.mark.parametrize("name", ALERTS)
def test_alert_that_fires_at_no_time_or_at_all_times_is_found(tmp_path: Path, name: str, expression: str) -> None:
    broken, cases = copy.deepcopy(RULES), copy.deepcopy(RULE_TESTS)
    (rule,) = (rule for group in broken["groups"] for rule in group["rules"] if rule["alert"] == name)
    rule["expr"] = expression
    for test in cases["tests"]:
        test["alert_rule_test"] = [case for case in test["alert_rule_test"] if case["alertname"] == name]
    cases["tests"] = [test for test in cases["tests"] if test["alert_rule_test"]]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(broken))
    (tmp_path / "alerts.test.yaml").write_text(yaml.safe_dump(cases))
    done = promtool("test", "rules", "alerts.test.yaml", folder=tmp_path)
    assert done.returncode != 0
    assert f"alertname:{name}" in (done.stdout + done.stderr).replace(" ", "")
