"""Traces are drawn with a seed, and their distributions are what their shape says."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.trace import TraceShape, all_at_once, make_trace, zipf

SHAPE = TraceShape(num_adapters=8, prompt_tokens=(8, 64), new_tokens=(2, 9), vocab_size=100)


def test_trace_of_one_seed_is_the_same_twice_and_another_seed_differs() -> None:
    first, again, other = (make_trace(SHAPE, rate=2.0, num_requests=20, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert [request.prompt_token_ids for request in first] != [request.prompt_token_ids for request in other]


def test_trace_at_twice_the_rate_has_the_same_requests_in_half_the_time() -> None:
    slow = make_trace(SHAPE, rate=1.0, num_requests=20, seed=3)
    fast = make_trace(SHAPE, rate=2.0, num_requests=20, seed=3)

    assert all_at_once(slow) == all_at_once(fast)
    assert [request.arrival_s * 2 for request in fast] == pytest.approx([request.arrival_s for request in slow])


def test_longer_trace_begins_with_the_shorter_one() -> None:
    assert make_trace(SHAPE, rate=1.0, num_requests=30, seed=4)[:10] == make_trace(
        SHAPE, rate=1.0, num_requests=10, seed=4
    )


def test_trace_over_more_adapters_keeps_prompts_and_lengths() -> None:
    few = make_trace(TraceShape(num_adapters=5), rate=1.0, num_requests=20, seed=5)
    many = make_trace(TraceShape(num_adapters=2000), rate=1.0, num_requests=20, seed=5)

    assert [one.prompt_token_ids for one in few] == [one.prompt_token_ids for one in many]
    assert [one.num_new_tokens for one in few] == [one.num_new_tokens for one in many]


def test_trace_lengths_reach_both_bounds_and_never_pass_them() -> None:
    trace = make_trace(SHAPE, rate=1.0, num_requests=2000, seed=6)

    prompts = {len(request.prompt_token_ids) for request in trace}
    answers = {request.num_new_tokens for request in trace}
    tokens = {token for request in trace for token in request.prompt_token_ids}
    assert (min(prompts), max(prompts)) == (8, 64)
    assert (min(answers), max(answers)) == (2, 9)
    assert (min(tokens), max(tokens)) == (3, 99)


def test_trace_arrivals_are_poisson_at_the_rate() -> None:
    arrivals_s = np.array([request.arrival_s for request in make_trace(SHAPE, rate=4.0, num_requests=4000, seed=7)])
    gaps_s = np.diff(arrivals_s)

    assert (gaps_s >= 0).all()
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.1)


def test_trace_adapters_follow_zipf() -> None:
    trace = make_trace(SHAPE, rate=1.0, num_requests=8000, seed=8)

    counts = Counter(request.adapter for request in trace)
    shares = [counts[adapter] / len(trace) for adapter in range(SHAPE.num_adapters)]
    assert shares == pytest.approx(zipf(SHAPE.num_adapters, 1.0), abs=0.02)


def test_zipf_with_exponent_one_halves_from_first_to_second() -> None:
    assert zipf(2, 1.0) == pytest.approx([2 / 3, 1 / 3])


def test_zipf_with_exponent_zero_is_uniform() -> None:
    assert zipf(4, 0.0) == pytest.approx([0.25] * 4)


def test_trace_with_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        make_trace(SHAPE, rate=0.0, num_requests=1, seed=0)
