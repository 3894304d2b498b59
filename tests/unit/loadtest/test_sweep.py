"""The knee of made-up servers, whose capacity is known."""

import pytest

from loadtest.metrics import Slo
from loadtest.records import Outcome, RequestRecord
from loadtest.report import Report, summarize_run
from loadtest.sweep import SweepConfig, find_knee

SLO = Slo(e2e_ms=100.0)


class Server:
    """Keeps the objective up to its capacity; of what is beyond it, nothing is good."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.rates: list[float] = []

    def measure(self, rate: float) -> Report:
        self.rates.append(rate)
        num_good = 200 if rate <= self.capacity else round(200 * self.capacity / rate)
        records = [
            RequestRecord("base", Outcome.COMPLETED, i / rate, i / rate, i / rate + (0.05 if i < num_good else 0.5))
            for i in range(200)
        ]
        return summarize_run(records, SLO, {})


@pytest.mark.parametrize("capacity", [5.0, 17.3, 60.0, 100.0])
def test_sweep_finds_the_knee_within_its_last_step(capacity: float) -> None:
    server = Server(capacity)
    found = find_knee(SweepConfig(4.0, factor=2.0, num_bisections=5, min_good_share=1.0), server.measure)
    assert found.knee is not None
    assert found.first_bad is not None
    assert found.knee.rate <= capacity < found.first_bad.rate
    assert found.first_bad.rate / found.knee.rate == pytest.approx(2 ** (1 / 32))
    assert [point.rate for point in found.points] == sorted(server.rates)
    assert "The knee" in found.sentence(1.0, SLO.bounds_ms)


def test_sweep_too_fast_a_start_goes_down() -> None:
    found = find_knee(SweepConfig(64.0, factor=2.0, num_bisections=0, min_good_share=1.0), Server(5.0).measure)
    assert found.knee is not None
    assert (found.knee.rate, found.first_bad.rate) == (4.0, 8.0)  # type: ignore[union-attr]


def test_sweep_share_allows_some_to_be_late() -> None:
    strict, lenient = (
        find_knee(SweepConfig(4.0, 2.0, 6, min_good_share=share), Server(10.0).measure) for share in (1.0, 0.8)
    )
    assert strict.knee is not None
    assert lenient.knee is not None
    assert lenient.knee.rate == pytest.approx(10.0 / 0.8, rel=0.03)
    assert strict.knee.rate == pytest.approx(10.0, rel=0.03)


def test_sweep_nothing_good_says_so() -> None:
    server = Server(1e-9)
    found = find_knee(SweepConfig(4.0, 10.0, 2), server.measure)
    assert found.knee is None
    assert "No knee: even at" in found.sentence(0.95, SLO.bounds_ms)


def test_sweep_good_up_to_the_end_says_so() -> None:
    found = find_knee(SweepConfig(4.0, 1.05, 2), Server(1e9).measure)
    assert found.first_bad is None
    assert found.sentence(0.95, SLO.bounds_ms).startswith("No knee up to the highest rate tried")


def test_sweep_good_rate_above_a_bad_one_is_no_knee() -> None:
    server = Server(10.0)

    def lucky(rate: float) -> Report:
        # The first rate tried beyond capacity is bad; one between is good again by chance.
        return Server(1e9 if 11.0 < rate < 12.0 else server.capacity).measure(rate)

    found = find_knee(SweepConfig(8.0, 2.0, 3, min_good_share=1.0), lucky)
    assert found.knee is not None
    assert found.first_bad is not None
    assert found.knee.rate < found.first_bad.rate


@pytest.mark.parametrize("fields", [(0.0,), (4.0, 1.0), (4.0, 2.0, 11), (4.0, 2.0, 3, 0.0), (4.0, 2.0, 3, 1.1)])
def test_sweep_config_that_would_not_end_is_refused(fields: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="a sweep"):
        SweepConfig(*fields)  # type: ignore[arg-type]
