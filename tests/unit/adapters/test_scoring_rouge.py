"""ROUGE's parts against ``rouge_score`` and against plain counting, on random texts."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer as Theirs

from adapters.scoring.overlap import Overlap, ReferenceMode, combine
from adapters.scoring.rouge_family import ROUGE_TYPES, RougeFamily
from adapters.scoring.skip_bigrams import rouge_s, rouge_su
from adapters.scoring.surface import ngram_precision
from adapters.scoring.weighted_lcs import rouge_w
from adapters.scoring.words import WordCutter, ngrams

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
OURS = RougeFamily()
THEIRS = Theirs(list(KINDS), use_stemmer=True)
words_of = st.lists(st.sampled_from(["cold", "colder", "walks", "walking", "it", "7", "is", "été"]), max_size=12)
texts = st.one_of(
    st.text(max_size=60), words_of.map(" ".join), st.lists(words_of.map(" ".join), max_size=4).map("\n".join)
)
letters = st.lists(st.sampled_from("abcd"), max_size=10)


@settings(max_examples=150, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_score_best_of_random_texts_equals_rouge_score(prediction: str, references: list[str]) -> None:
    expected = THEIRS.score_multi(references, prediction)
    scores = OURS.score(prediction, references)
    for kind in KINDS:
        found = scores[f"{kind}_best"]
        parts = (expected[kind].precision, expected[kind].recall, expected[kind].fmeasure)
        assert (found.precision, found.recall, found.f) == pytest.approx(parts, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_own_metrics_at_their_limits_equal_rouge_score(prediction: str, reference: str) -> None:
    cutter = WordCutter(is_stemmed=True)
    words, others = cutter.tokenize(prediction), cutter.tokenize(reference)
    expected = THEIRS.score(reference, prediction)
    assert rouge_w(words, others, exponent=1.0).f == pytest.approx(expected["rougeL"].fmeasure, abs=1e-9)
    assert rouge_s(words, others, max_gap=0).f == pytest.approx(expected["rouge2"].fmeasure, abs=1e-9)
    clipped = ngram_precision(words, [others], 1).clipped
    assert clipped == pytest.approx(expected["rouge1"].precision, abs=1e-9)


@settings(deadline=None)
@given(letters, letters, st.one_of(st.none(), st.integers(0, 5)))
def test_rouge_s_and_su_equal_plain_counting(prediction: list[str], reference: list[str], max_gap: int | None) -> None:
    def pairs(words: list[str]) -> Counter[tuple[str, ...]]:
        places = combinations(range(len(words)), 2)
        return Counter((words[i], words[j]) for i, j in places if max_gap is None or j - i - 1 <= max_gap)

    def shared(predicted: Counter[tuple[str, ...]], referenced: Counter[tuple[str, ...]]) -> Overlap:
        matches = sum(min(count, referenced[unit]) for unit, count in predicted.items())
        return Overlap.of_counts(matches, sum(predicted.values()), sum(referenced.values()))

    assert rouge_s(prediction, reference, max_gap) == shared(pairs(prediction), pairs(reference))
    singles = [Counter((word,) for word in words) for words in (prediction, reference)]
    assert rouge_su(prediction, reference, max_gap) == shared(
        pairs(prediction) + singles[0], pairs(reference) + singles[1]
    )


@settings(deadline=None)
@given(letters, letters, st.floats(1.0, 3.0))
def test_rouge_w_is_within_one_and_turns_with_its_arguments(first: list[str], second: list[str], power: float) -> None:
    one_way, other_way = rouge_w(first, second, power), rouge_w(second, first, power)
    assert 0.0 <= one_way.precision <= 1.0 + 1e-12
    assert one_way.precision == pytest.approx(other_way.recall)
    assert rouge_w(first, first, power).f == pytest.approx(1.0 if first else 0.0)


def test_score_several_references_each_mode_has_its_own_figure_and_name() -> None:
    references = ["one two three four", "one two", "nine"]
    f = {
        mode: OURS.score("one two three four", references, mode)[f"rouge1_{mode}"].f
        for mode in (ReferenceMode.BEST, ReferenceMode.MEAN, ReferenceMode.JACKKNIFE)
    }
    # F with each: 1, 2/3 and 0; the best without the first is 2/3, without the second or third 1.
    assert f["best"] == 1.0
    assert f["mean"] == pytest.approx(5 / 9)
    assert f["jackknife"] == pytest.approx(8 / 9)
    assert set(OURS.score("a", ["b"], ReferenceMode.MEAN)) == {f"{kind}_mean" for kind in ROUGE_TYPES}


@pytest.mark.parametrize("mode", list(ReferenceMode))
def test_combine_one_reference_is_the_same_in_every_mode(mode: ReferenceMode) -> None:
    assert combine([Overlap.of(0.5, 0.25)], mode) == Overlap.of(0.5, 0.25)


@pytest.mark.parametrize("mode", list(ReferenceMode))
def test_combine_no_references_is_refused(mode: ReferenceMode) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        combine([], mode)


def test_metrics_of_senseless_options_are_refused() -> None:
    with pytest.raises(ValueError, match="exponent"):
        rouge_w("ab", "ab", exponent=0.5)
    with pytest.raises(ValueError, match="at least 0 words"):
        rouge_s("ab", "ab", max_gap=-1)
    with pytest.raises(ValueError, match="one word or more"):
        ngrams("ab", 0)
