"""Every law of popularity against its formula, with fixed seeds."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from loadtest.arrivals import generator
from loadtest.popularity import (
    MixError,
    OneHot,
    Popularity,
    TracePopularity,
    Uniform,
    Weighted,
    Zipf,
    parse_mix,
)
from loadtest.traces import TraceFileError

COUNT = 40_000


def _shares(popularity: Popularity) -> dict[str, float]:
    counts = Counter(entry.label for entry in popularity.draw(generator("adapters", 3), COUNT))
    return {label: count / COUNT for label, count in counts.items()}


def test_uniform_shares_are_alike() -> None:
    shares = _shares(Uniform(number=8))
    assert set(shares) == {f"adapter-{index}" for index in range(8)}
    assert list(shares.values()) == pytest.approx([1 / 8] * 8, rel=0.05)


@pytest.mark.parametrize("s", [0.0, 0.8, 1.0, 2.0])
def test_zipf_shares_follow_the_power_law(s: float) -> None:
    shares = _shares(Zipf(number=10, pattern="lora-{}", s=s))
    weights = np.arange(1, 11) ** -s
    expected = weights / weights.sum()
    assert [shares[f"lora-{index}"] for index in range(10)] == pytest.approx(expected, rel=0.1, abs=0.002)


def test_one_hot_asks_for_one_and_base_means_none() -> None:
    assert _shares(OneHot("a+b")) == {"a+b": 1.0}
    assert OneHot("a+b").entries()[0].adapters == ("a", "b")
    assert OneHot("base").entries()[0].adapters == ()


def test_weighted_shares_follow_the_weights() -> None:
    assert _shares(Weighted("base=1,a=3")) == pytest.approx({"base": 0.25, "a": 0.75}, rel=0.05)


def test_draws_are_the_seeds_own() -> None:
    uniform = Uniform(number=50)
    one, same, other = (uniform.draw(generator("adapters", seed), 30) for seed in (1, 1, 2))
    assert one == same != other


def test_trace_keeps_its_order_and_begins_again(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps({"adapters": names}) + "\n" for names in (["a"], [], ["a"], ["a", "b"])))
    trace = TracePopularity(file)
    assert [entry.label for entry in trace.draw(generator("adapters", 0), 6)] == [
        *("a", "base", "a", "a+b"),
        *("a", "base"),
    ]
    assert {entry.label: entry.weight for entry in trace.entries()} == {"a": 2, "base": 1, "a+b": 1}
    file.write_text('{"at_s": 1}\n')
    with pytest.raises(TraceFileError, match="needs 'adapters'"):
        trace.entries()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "either 'names' or a 'number'"),
        ({"names": ("a",), "number": 2}, "either 'names' or a 'number'"),
        ({"number": 0}, "greater than or equal to 1"),
        ({"number": 2, "pattern": "same"}, "once"),
        ({"names": ("a", "")}, "without a name"),
    ],
)
def test_several_malformed_is_refused(fields: dict[str, object], reason: str) -> None:
    for law in (Uniform, Zipf):
        with pytest.raises(ValidationError, match=reason):
            law(**fields)


def test_mix_names_weights_and_base() -> None:
    mix = parse_mix("base=1, dialogsum=2.5,dialogsum+dialogsum-prompt")
    assert [entry.adapters for entry in mix] == [(), ("dialogsum",), ("dialogsum", "dialogsum-prompt")]
    assert [entry.weight for entry in mix] == [1.0, 2.5, 1.0]
    assert [entry.label for entry in mix] == ["base", "dialogsum", "dialogsum+dialogsum-prompt"]


@pytest.mark.parametrize("mix", ["", "a=0", "a=-1", "a=nan", "a=inf", "a=x", "=1", "a+=1", "a,,b", "a=1,a=2"])
def test_mix_malformed_is_refused(mix: str) -> None:
    with pytest.raises(MixError):
        parse_mix(mix)
