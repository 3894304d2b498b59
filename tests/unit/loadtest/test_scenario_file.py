"""Scenario files: what ships is sound, and every fault is told by its key with what to do."""

import json
from pathlib import Path

import pytest

from loadtest.arrivals import Gamma, Trace
from loadtest.popularity import Zipf
from loadtest.scenario import Scenario
from loadtest.scenario_file import (
    ScenarioError,
    as_json,
    from_json,
    load_scenario,
    parse_override,
    shipped_names,
)
from loadtest.shares import deal


def _load(*settings: str, source: str = "default") -> Scenario:
    return load_scenario(source, [parse_override(setting) for setting in settings])


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_scenario_is_sound_and_sends_something(name: str) -> None:
    scenario = _load(source=name)
    assert scenario.name == name
    assert scenario.about
    assert deal(scenario)[0].planned
    assert from_json(json.loads(json.dumps(as_json(scenario)))) == scenario


def test_shipped_slora_is_the_papers_shape() -> None:
    scenario = _load(source="slora")
    assert isinstance(scenario.arrivals, Gamma)
    assert scenario.arrivals.per_adapter
    assert isinstance(scenario.adapters, Zipf)
    assert (scenario.lengths.input.kind, scenario.lengths.output.kind) == ("uniform", "uniform")  # type: ignore[union-attr]


def test_overrides_are_written_over_the_file_in_order() -> None:
    scenario = _load("arrivals.rate=7", "arrivals.rate=8", "slo.e2e_ms=900", "adapters={kind: zipf, number: 3, s: 2}")
    assert (scenario.arrivals.rate, scenario.slo.e2e_ms) == (8.0, 900.0)  # type: ignore[union-attr]
    assert [entry.weight for entry in scenario.adapters.entries()] == pytest.approx([1, 1 / 4, 1 / 9])


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("arrivals: {kind: trace, file: a.jsonl}\ndata: b.jsonl\n")
    scenario = load_scenario(str(file))
    assert isinstance(scenario.arrivals, Trace)
    assert (scenario.arrivals.file, scenario.data) == (tmp_path / "a.jsonl", tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["arrivals.ratee=3"], "arrivals.ratee: unknown key; there are rate, kind"),
        (["nothing=3"], "nothing: unknown key; there are name, about, seed"),
        (["lengths.output={kind: fixed, valu: 3}"], "lengths.output.valu: unknown key; there are value, kind"),
        (["adapters={kind: zipf, number: 3, q: 1}"], "adapters.q: unknown key; there are names, number, pattern"),
        (["churn={names: [a], source: b, every: 3}"], "churn.every: unknown key; there are names, source, every_s"),
        (["arrivals.rate=0"], "arrivals.rate: should be greater than 0, not 0"),
        (["arrivals.rate=1e9"], "arrivals.rate: should be less than or equal to 100000"),
        (["arrivals={kind: gamma, cv: -1}"], "arrivals.cv: should be greater than 0, not -1"),
        (["arrivals={kind: gama}"], "'constant', 'poisson', 'gamma', 'trace', 'closed'"),
        (["arrivals={kind: trace}"], "arrivals.file: must be given"),
        (["arrivals={kind: closed, num_users: 2}", "client.num_processes=3"], "as many users as client processes"),
        (["lengths.input={kind: uniform, low: 5, high: 3}"], "lengths.input: 'low' must not be above 'high'"),
        (["lengths={exact: true, output: {kind: fixed, value: 3}}"], "lengths.exact needs target.protocol openai"),
        (["slo.ttft_ms=-3"], "slo.ttft_ms: should be greater than 0"),
        (["slo.tpot_ms=3", "target.stream=false"], "bounds on TTFT and TPOT need target.stream"),
        (["target.protocol=ftp"], "target.protocol: should be 'http', 'grpc' or 'openai'"),
        (["target.model=x"], "target: 'route' and 'model' are for protocol openai only"),
        (["target.protocol=openai", "prepare.source=tweetsumm"], "'prepare' and 'churn' need target.protocol"),
        (["duration_s=null"], "a run needs 'duration_s' or 'num_requests'"),
        (["arrivals=3"], "arrivals: should be a valid dictionary"),
    ],
)
def test_scenario_faulty_is_refused_by_its_key(settings: list[str], told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        _load(*settings)
    assert told in str(caught.value)


def test_scenario_file_unreadable_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    for content, told in (("a: [", "cannot read the scenario"), ("- 1", "is a mapping of keys")):
        file.write_text(content)
        with pytest.raises(ScenarioError, match=told):
            load_scenario(str(file))
    with pytest.raises(ScenarioError, match="one of churn, closed, default"):
        load_scenario("absent")


@pytest.mark.parametrize("text", ["a", "=3", "a=[", "a={b"])
def test_override_malformed_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="--set"):
        parse_override(text)
