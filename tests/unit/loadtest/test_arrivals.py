"""Every process against its formula, with fixed seeds: mean, coefficient of variation, limits."""

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from loadtest.arrivals import Constant, Gamma, OpenLoop, Poisson, Trace, schedule
from loadtest.traces import TraceFileError


def _gaps(arrivals: OpenLoop, count: int = 20_000) -> list[float]:
    times = [0.0, *schedule(arrivals, 1, None, count)]
    return [after - before for before, after in pairwise(times)]


def test_arrivals_same_seed_gives_same_times() -> None:
    assert schedule(Poisson(5.0), 7, 10.0, None) == schedule(Poisson(5.0), 7, 10.0, None)
    assert schedule(Poisson(5.0), 7, 10.0, None) != schedule(Poisson(5.0), 8, 10.0, None)


def test_poisson_gaps_are_exponential() -> None:
    gaps = _gaps(Poisson(20.0))
    # An exponential's mean equals its standard deviation; a share of exp(-1) lies above it.
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap > 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)


def test_constant_gaps_are_all_alike() -> None:
    assert _gaps(Constant(20.0), 100) == pytest.approx([0.05] * 100)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    gaps = _gaps(Gamma(20.0, cv=cv), 100_000)
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.04)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.04)


def test_schedule_both_limits_keeps_the_tighter() -> None:
    assert len(schedule(Poisson(100.0), 0, 1000.0, 12)) == 12
    assert max(schedule(Poisson(100.0), 0, 0.5, 10_000)) < 0.5


def test_schedule_warm_up_comes_before_zero_and_counts_as_no_request() -> None:
    times = schedule(Constant(10.0), 0, None, 5, warm_up_s=1.05)
    assert [round(time, 3) for time in times if time >= 0] == [0.05, 0.15, 0.25, 0.35, 0.45]
    assert len([time for time in times if time < 0]) == 10
    assert max(schedule(Constant(10.0), 0, 2.0, None, warm_up_s=1.0)) == pytest.approx(1.9)


@pytest.mark.parametrize("kind", [Constant, Poisson, Gamma])
@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan"), 1e6])
def test_arrivals_impossible_rate_is_refused(kind: type, rate: float) -> None:
    with pytest.raises(ValidationError, match="rate"):
        kind(rate=rate)


def test_schedule_without_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="duration or a number"):
        schedule(Poisson(1.0), 0, None, None)


def test_trace_gives_its_own_times_once_and_faster(tmp_path: Path) -> None:
    file = _trace(tmp_path, [{"at_s": 0}, {"at_s": 1.5}, {"at_s": 4}])
    assert schedule(Trace(file), 0, None, None) == [0.0, 1.5, 4.0]
    assert schedule(Trace(file, speed=2.0), 0, 1.0, None) == [0.0, 0.75]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([{"at_s": 1}, {"at_s": 0}], "must not fall"),
        ([{"adapters": []}], "need 'at_s'"),
        ([{"at_s": -1}], "0 or more"),
        ([{"at_s": True}], "0 or more"),
        ([7], "JSON object"),
        ([], "no line"),
    ],
)
def test_trace_malformed_is_refused(tmp_path: Path, lines: list[object], reason: str) -> None:
    with pytest.raises(TraceFileError, match=reason):
        schedule(Trace(_trace(tmp_path, lines)), 0, None, None)


def test_trace_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="cannot read"):
        schedule(Trace(tmp_path / "absent.jsonl"), 0, None, None)


def _trace(folder: Path, lines: list[object]) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
