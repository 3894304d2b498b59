"""BLEU: counts by sentence add up to sacrebleu's own figure of the corpus."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from adapters.scoring.bleu import BleuScorer

SCORER = BleuScorer()
texts = st.lists(st.sampled_from(["Ann", "buys", "a", "red", "car.", "today,"]), max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6))
def test_of_statistics_summed_equals_sacrebleu(rows: list[tuple[str, str, str]]) -> None:
    predictions, firsts, seconds = (list(column) for column in zip(*rows, strict=True))
    expected = BLEU().corpus_score(predictions, [firsts, seconds]).score
    references = [[first, second] for first, second in zip(firsts, seconds, strict=True)]
    assert SCORER.corpus(predictions, references).score == pytest.approx(expected, abs=1e-9)
    total = SCORER.statistics(predictions, references).sum(axis=0)
    assert SCORER.of_statistics(total) == pytest.approx(expected, abs=1e-9)


def test_corpus_examples_with_different_numbers_of_references_count_and_say_so() -> None:
    predictions, references = (
        ["Ann buys a red car", "Bob waits"],
        [["Ann buys a car", "Ann buys a red car"], ["Bob waits"]],
    )
    found = SCORER.corpus(predictions, references)
    assert found.score == pytest.approx(100.0)
    assert found.signature.startswith("nrefs:var|")


def test_sentence_shorter_than_four_words_is_scored_on_what_it_has() -> None:
    assert SCORER.sentence("Bob waits", ["Bob waits"]) == pytest.approx(100.0)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a", "b"], [["a"]])])
def test_corpus_of_uneven_input_is_refused(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="reference"):
        SCORER.corpus(predictions, references)


def test_sentence_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        SCORER.sentence("a", [])
