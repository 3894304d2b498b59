"""The worked examples of the papers and the course, by name: what each metric must say of them."""

import pytest

from adapters.scoring.bleu import BleuScorer, BleuWords
from adapters.scoring.overlap import Overlap
from adapters.scoring.rouge_family import RougeFamily
from adapters.scoring.skip_bigrams import rouge_s, rouge_su
from adapters.scoring.suite import MetricSuite
from adapters.scoring.surface import ngram_precision, repetition_rate
from adapters.scoring.weighted_lcs import rouge_w

COLD = "It is cold outside"
POLICE = ["police", "killed", "the", "gunman"]
TEA = "I am very happy to say that I am drinking a warm cup of tea."
TEA_PREDICTION = "I am very happy that I am drinking a cup of tea."


@pytest.fixture(scope="module")
def rouge() -> RougeFamily:
    return RougeFamily()


@pytest.mark.parametrize(("prediction", "expected"), [("ABCDHIK", 0.571), ("AHBKCID", 0.286)])
def test_rouge_w_paper_example_prefers_words_in_a_row(prediction: str, expected: float) -> None:
    weighted = rouge_w(prediction, "ABCDEFG", exponent=2.0)
    assert (weighted.precision, weighted.recall, weighted.f) == pytest.approx((expected,) * 3, abs=5e-4)
    # ROUGE-L cannot tell the two apart.
    assert rouge_w(prediction, "ABCDEFG", exponent=1.0).f == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("police kill the gunman", 0.5), ("the gunman kill police", 0.167), ("the gunman police killed", 0.333)],
)
def test_rouge_s_police_example_counts_pairs_in_order(prediction: str, expected: float) -> None:
    scored = rouge_s(prediction.split(), POLICE)
    assert (scored.precision, scored.recall, scored.f) == pytest.approx((expected,) * 3, abs=5e-4)


def test_rouge_su_police_example_reversed_is_above_zero() -> None:
    assert rouge_s(POLICE[::-1], POLICE).f == 0.0
    # Four words of four, none of six pairs.
    assert rouge_su(POLICE[::-1], POLICE).f == pytest.approx(0.4)


def test_clipping_cold_four_times_falls_from_one_to_a_quarter() -> None:
    words = ["cold", "cold", "cold", "cold"]
    precision = ngram_precision(words, [COLD.lower().split()], 1)
    assert (precision.unclipped, precision.clipped) == (1.0, 0.25)
    assert repetition_rate(words, 1) == 0.75


def test_rouge_hacking_outside_cold_it_is_shows_beside_full_rouge_1() -> None:
    figures = MetricSuite().score("outside cold it is", [COLD], COLD)
    assert figures["rouge1_best"] == 100.0
    assert figures["rouge2_best"] == pytest.approx(33.333, abs=1e-3)
    assert figures["rougeL_best"] == 50.0
    # It repeats nothing: order, and not repetition, gives it away.
    assert figures["repetition3"] == 0.0


@pytest.mark.parametrize("prediction", ["It is very cold outside", "It is not cold outside"])
def test_rouge_l_course_example_takes_words_apart(rouge: RougeFamily, prediction: str) -> None:
    # Contiguous, as the course's slide reads it, would be "it is" or "cold outside": two words of four. And no ROUGE
    # sees what "not" does to the meaning.
    scored = rouge.score(prediction, [COLD])["rougeL_best"]
    assert (scored.precision, scored.recall) == (0.8, 1.0)
    assert scored.f == pytest.approx(0.889, abs=5e-4)


def test_rouge_1_and_2_course_example_in_parts(rouge: RougeFamily) -> None:
    scores = rouge.score("It is very cold outside", [COLD])
    assert scores["rouge1_best"] == Overlap.of(0.8, 1.0)
    assert scores["rouge2_best"] == Overlap.of(0.5, 2 / 3)


def test_bleu_tea_example_depends_on_how_words_are_cut() -> None:
    whitespace = BleuScorer(BleuWords.WHITESPACE).corpus([TEA_PREDICTION], [[TEA]])
    assert whitespace.score == pytest.approx(49.53, abs=5e-3)
    assert "tok:none" in whitespace.signature
    default = BleuScorer().corpus([TEA_PREDICTION], [[TEA]])
    assert default.score == pytest.approx(53.88, abs=5e-3)
    assert default.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
