import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from server.engine.base import EngineStats
from server.observability.durations import Durations
from server.observability.metrics import Metrics, MetricsConfig
from tests.fixtures.metrics_page import Family, families, touch

PAGE = Path(__file__).parents[4] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(medley_\w+)` \| (\w+) \| (\w*) ?\| ([^|]*)\|", re.MULTILINE)
BUCKETS = re.compile(r"^\| `(medley_\w+)` \| ([\d., ]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One line of the page's table."""

    kind: str
    unit: str
    labels: frozenset[str]


def documented() -> dict[str, Row]:
    rows = ROW.findall(PAGE.read_text())
    return {name: Row(kind, unit, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, unit, labels in rows}


def shown() -> dict[str, Family]:
    metrics = Metrics()
    metrics.watch_engine(lambda: EngineStats(alive=True, num_waiting=3, num_running=2, num_adapter_evictions=1))
    touch(metrics.registry)
    return families(generate_latest(metrics.registry).decode())


def test_metrics_page_names_every_metric_with_its_type() -> None:
    assert {name: row.kind for name, row in documented().items()} == {
        name: family.kind for name, family in shown().items()
    }


def test_metrics_page_names_every_label() -> None:
    assert {name: row.labels for name, row in documented().items()} == {
        name: family.labels for name, family in shown().items()
    }


@pytest.mark.parametrize("unit", ["seconds", "bytes"])
def test_metrics_page_gives_units_as_the_names_do(unit: str) -> None:
    named = {name for name in documented() if name.endswith(f"_{unit}")}
    assert named == {name for name, row in documented().items() if row.unit == unit}
    assert named


def test_metrics_page_names_every_bucket() -> None:
    rows = BUCKETS.findall(PAGE.read_text())
    assert {name: tuple(map(float, bounds.split(", "))) for name, bounds in rows} == {
        name: family.buckets for name, family in shown().items() if family.kind == "histogram"
    }


def test_engine_gauges_are_read_at_each_scrape() -> None:
    stats = EngineStats(alive=True, num_waiting=3, num_running=2)
    metrics = Metrics()
    metrics.watch_engine(lambda: stats)
    assert b"medley_requests_waiting 3.0" in generate_latest(metrics.registry)
    stats = EngineStats(alive=False, num_waiting=0, num_running=0)
    page = generate_latest(metrics.registry)
    assert b"medley_requests_waiting 0.0" in page
    assert b"medley_engine_alive 0.0" in page


def test_metrics_of_two_servers_in_one_process_stay_apart() -> None:
    first, second = Metrics(), Metrics()
    first.of(()).prompt_tokens.inc(5)
    assert second.registry.get_sample_value("medley_prompt_tokens_total", {"adapters": "base"}) is None


def test_adapters_beyond_the_bound_are_counted_under_other() -> None:
    metrics = Metrics(MetricsConfig(max_num_adapter_labels=2))
    for names in (["a"], ["b", "a"], ["c"], ["a", "b"], ["d"], []):
        metrics.of(names).prompt_tokens.inc()
    counted = {
        sample.labels["adapters"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "medley_prompt_tokens_total"
    }
    assert counted == {"a": 1, "a+b": 2, "other": 2, "base": 1}


def test_load_times_are_rendered_as_a_histogram() -> None:
    durations = Durations()
    for duration_s in (0.0005, 0.02, 0.02, 100.0):
        durations.observe(duration_s)
    metrics = Metrics()
    metrics.watch_engine(
        lambda: EngineStats(alive=True, num_waiting=0, num_running=0, adapter_load_times=durations.counted)
    )
    value = metrics.registry.get_sample_value
    bounds = ("0.001", "0.01", "0.025", "10.0", "+Inf")
    counts = [value("medley_adapter_load_seconds_bucket", {"le": bound}) for bound in bounds]
    assert counts == [1, 1, 3, 3, 4]
    assert value("medley_adapter_load_seconds_count") == 4
    assert value("medley_adapter_load_seconds_sum") == pytest.approx(100.0405)


def test_latest_loads_are_those_of_known_adapters_and_few() -> None:
    durations = Durations()
    for number in range(40):
        durations.observe(0.01)
        durations.observe(number / 100, f"digest-{number}")
    latest = durations.counted.latest
    assert [load.digest for load in latest] == [f"digest-{number}" for number in range(8, 40)]
    assert latest[-1].duration_s == 0.39
    assert sum(durations.counted.counts) == 80
