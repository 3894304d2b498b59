"""Repetition, copying, clipping and length by hand, and the suite that reports them."""

import pytest

from adapters.scoring.overlap import ReferenceMode
from adapters.scoring.rouge_family import ROUGE_TYPES
from adapters.scoring.suite import MetricSuite
from adapters.scoring.surface import copy_rate, length_ratio, ngram_precision, repetition_rate


def test_repetition_rate_counts_what_stood_before() -> None:
    assert repetition_rate(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(3 / 5)
    assert repetition_rate(["a", "b", "c"], 1) == 0.0


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b"]])
def test_rates_of_texts_without_an_n_gram_are_zero(words: list[str]) -> None:
    assert repetition_rate(words, 3) == copy_rate(words, ["a", "b", "c"], 3) == 0.0


def test_copy_rate_is_the_share_found_in_the_source() -> None:
    source = ["ann", "buys", "a", "red", "car", "today"]
    assert copy_rate(["ann", "buys", "a", "blue", "car"], source, 2) == pytest.approx(2 / 4)
    assert copy_rate(source, source, 3) == 1.0


def test_ngram_precision_clips_at_the_reference_that_has_most() -> None:
    found = ngram_precision(["the", "the", "the", "cat"], [["the", "cat"], ["the", "the", "dog"]], 1)
    assert (found.unclipped, found.clipped) == (1.0, 0.75)


def test_length_ratio_takes_the_nearest_reference_then_the_shorter() -> None:
    words = ["w"] * 6
    assert length_ratio(words, [["r"] * 20, ["r"] * 5]) == pytest.approx(6 / 5)
    assert length_ratio(words, [["r"] * 8, ["r"] * 4]) == pytest.approx(6 / 4)
    assert length_ratio(words, [[]]) == 6.0
    with pytest.raises(ValueError, match="at least one reference"):
        length_ratio(words, [])


def test_suite_names_every_figure_with_its_mode_and_bounds() -> None:
    figures = MetricSuite(ReferenceMode.JACKKNIFE).score(
        "Ann buys a car.", ["Ann buys a red car.", "A car."], "Ann: hi"
    )
    expected = {f"{kind}_jackknife{part}" for kind in ROUGE_TYPES for part in ("", "_precision", "_recall")}
    expected |= {"bleu_sentence", "precision1_unclipped", "precision1_clipped", "repetition3", "copy3", "length_ratio"}
    assert set(figures) == expected
    assert all(0.0 <= value <= 100.0 for value in figures.values())
    assert figures["length_ratio"] == pytest.approx(4 / 5)
