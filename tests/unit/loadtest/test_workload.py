from collections import Counter

import numpy as np
import pytest

from loadtest.arrivals import Constant, Gamma
from loadtest.examples import Example
from loadtest.lengths import Fixed, FromData, Lengths
from loadtest.popularity import MixEntry, Uniform, Zipf
from loadtest.workload import arrivals_and_kinds, plan

EXAMPLES = [Example("1", "one 1", ("a summary of five words",)), Example("2", "two 2")]
BASE = MixEntry(())


def _planned(count: int, seed: int = 3, **lengths: object) -> list:
    return plan([float(index) for index in range(count)], [BASE] * count, EXAMPLES, seed, Lengths(**lengths))


def test_plan_draws_texts_alike_by_the_seed() -> None:
    planned = _planned(8000)
    assert Counter(request.text for request in planned)["one 1"] == pytest.approx(4000, rel=0.05)
    assert [request.scheduled_s for request in planned] == [float(index) for index in range(8000)]
    assert planned == _planned(8000)
    assert planned != _planned(8000, seed=4)


def test_plan_input_length_is_made_of_the_texts_words() -> None:
    planned = _planned(50, input=Fixed(5))
    assert {request.text for request in planned} == {"one 1 two 2 one", "two 2 one 1 two"}


def test_plan_output_length_is_the_law_the_reference_or_the_servers() -> None:
    assert {request.max_new_tokens for request in _planned(50)} == {None}
    assert {request.max_new_tokens for request in _planned(50, output=Fixed(7))} == {7}
    by_text = {request.text: request.max_new_tokens for request in _planned(50, output=FromData())}
    assert by_text == {"one 1": 5, "two 2": None}


def test_plan_one_choice_changed_leaves_the_others() -> None:
    texts = [request.text for request in _planned(50, output=Fixed(7))]
    assert texts == [request.text for request in _planned(50, output=Fixed(9))]


def test_arrivals_per_adapter_each_have_their_share_and_a_process_of_their_own() -> None:
    popularity = Zipf(number=4, s=1.0)
    times, kinds = arrivals_and_kinds(
        Gamma(50.0, cv=2.0, per_adapter=True), popularity, 1, duration_s=1000.0, num_requests=None
    )
    assert times == sorted(times)
    assert len(times) == pytest.approx(50_000, rel=0.03)
    counts = Counter(kind.label for kind in kinds)
    total = sum(1 / rank for rank in range(1, 5))
    for rank in range(1, 5):
        assert counts[f"adapter-{rank - 1}"] / len(times) == pytest.approx(1 / rank / total, rel=0.05)
    # The gaps of one adapter vary as asked; those of all together less so.
    own = [time for time, kind in zip(times, kinds, strict=True) if kind.label == "adapter-3"]
    assert _variation(own) == pytest.approx(2.0, rel=0.1)
    assert _variation(times) < 1.8


def test_arrivals_per_adapter_keep_to_the_number_and_the_warm_up() -> None:
    times, kinds = arrivals_and_kinds(
        Gamma(50.0, per_adapter=True), Uniform(number=3), 1, duration_s=10.0, num_requests=20, warm_up_s=2.0
    )
    assert len([time for time in times if time >= 0]) == 20
    assert min(times) < -1.0
    assert len(kinds) == len(times)


def test_arrivals_one_process_draws_the_adapters() -> None:
    times, kinds = arrivals_and_kinds(Constant(10.0), Uniform(number=3), 1, duration_s=None, num_requests=30)
    assert len(times) == len(kinds) == 30
    assert len(set(kinds)) == 3


def _variation(times: list[float]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())
