"""Span corruption hides spans and loses nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.span_corruption import corrupt_spans, restore_spans

SENTINELS = list(range(3, 35))
EOS = 1


@settings(deadline=None)
@given(st.lists(st.integers(40, 4000), min_size=2, max_size=400), st.integers(0, 2**32))
def test_corrupt_spans_any_ids_can_be_restored(ids, seed):
    source, target = corrupt_spans(random.Random(seed), ids, SENTINELS, EOS)
    assert restore_spans(source, target, SENTINELS, EOS) == ids
    assert source[-1] == target[-1] == EOS
    assert source[0] == ids[0]


def test_corrupt_spans_long_text_hides_the_wanted_share():
    ids = list(range(100, 400))
    source, target = corrupt_spans(random.Random(0), ids, SENTINELS, EOS, noise_share=0.15, mean_span=3.0)
    num_spans = sum(token in SENTINELS for token in source)
    assert len(target) - 1 - num_spans == 45
    assert num_spans == 15


def test_corrupt_spans_same_seed_gives_same_spans():
    ids = list(range(100, 200))
    first, second = (corrupt_spans(random.Random(7), ids, SENTINELS, EOS) for _ in range(2))
    assert first == second
    assert first != corrupt_spans(random.Random(8), ids, SENTINELS, EOS)


def test_corrupt_spans_one_token_is_refused():
    with pytest.raises(ValueError, match="two tokens"):
        corrupt_spans(random.Random(0), [5], SENTINELS, EOS)
