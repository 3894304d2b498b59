"""ROUGE. Marked ``torch`` because importing ``evaluate`` imports torch where it is installed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapters.scoring import METRICS, RougeScorer

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def scorer() -> RougeScorer:
    return RougeScorer()


def test_score_same_text_is_hundred(scorer: RougeScorer) -> None:
    assert scorer.score("Ann buys a red car.", ["Ann buys a red car."]) == dict.fromkeys(METRICS, 100.0)


def test_score_hand_computed_example_matches(scorer: RougeScorer) -> None:
    scores = scorer.score("the cat sat", ["the cat ran away"])
    # 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 bigrams, common subsequence of 2.
    assert scores == pytest.approx({"rouge1": 57.142857, "rouge2": 40.0, "rougeL": 57.142857, "rougeLsum": 57.142857})


def test_score_stems_words(scorer: RougeScorer) -> None:
    assert scorer.score("cars driving", ["car drives"])["rouge1"] == 100.0


def test_score_several_references_takes_the_best_for_each_metric(scorer: RougeScorer) -> None:
    scores = scorer.score("one two three four", ["four three two one", "one two zero zero"])
    assert scores["rouge1"] == 100.0
    assert scores["rouge2"] == pytest.approx(100 / 3)


def test_score_lsum_reads_lines_as_sentences(scorer: RougeScorer) -> None:
    scores = scorer.score("one two\nthree four", ["three four\none two"])
    assert scores["rougeLsum"] == 100.0
    assert scores["rougeL"] == 50.0


@pytest.mark.parametrize("prediction", ["", "...", "日本語"])
def test_score_without_words_is_zero(scorer: RougeScorer, prediction: str) -> None:
    assert scorer.score(prediction, ["some words"]) == dict.fromkeys(METRICS, 0.0)


def test_score_corpus_is_the_mean(scorer: RougeScorer) -> None:
    scores = scorer.score_corpus(["a b", "x"], [["a b"], ["y", "z"]])
    assert scores == dict.fromkeys(METRICS, 50.0)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a", "b"], [["a"]])])
def test_score_corpus_of_uneven_input_is_refused(
    scorer: RougeScorer, predictions: list[str], references: list[list[str]]
) -> None:
    with pytest.raises(ValueError, match="reference"):
        scorer.score_corpus(predictions, references)


def test_scorer_without_network_writes_into_its_cache_only(tmp_path: Path) -> None:
    script = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from adapters.scoring import RougeScorer
print(RougeScorer().score("a b", ["a b"])["rouge2"])
"""
    for name in ("home", "cache", "work"):
        (tmp_path / name).mkdir()
    places = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {"PATH": os.environ["PATH"], **places}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "100.0"), done.stderr
    assert list((tmp_path / "home").iterdir()) == list((tmp_path / "work").iterdir()) == []


def test_score_from_several_threads_is_right_in_each(scorer: RougeScorer) -> None:
    results: dict[int, float] = {}

    def work(number: int) -> None:
        results[number] = scorer.score("w " * number + "z", ["w " * number + "z"])["rouge1"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(1, 6), 100.0)
