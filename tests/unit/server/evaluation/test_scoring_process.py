"""Scoring in a process apart: the same figures, and nothing that happens there reaches us."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from adapters.scoring.plugins import PluginScorer
from server.core.errors import UnavailableError
from server.evaluation.scoring_process import ScoringProcess

# Answers as the word it is asked about says.
SCRIPT = """
import json, os, sys, time
for line in sys.stdin.buffer:
    word = json.loads(line)[0]
    if word == "die":
        os._exit(1)
    if word == "hang":
        time.sleep(600)
    if word == "half":
        os.write(1, b'{"figures"')
        time.sleep(0.05)
        os.write(1, b': {"half": 1.0}}\\n')
        continue
    os.write(1, json.dumps({"figures": {word: float(os.getpid())}}).encode() + b"\\n")
"""

SERVER = """
from server.evaluation.scoring_process import ScoringProcess

scorer = ScoringProcess()
scorer.score("a", ["a"])
print("up", flush=True)
input()
"""


@pytest.fixture
def scorer() -> Iterator[ScoringProcess]:
    made = ScoringProcess()
    yield made
    made.close()


@pytest.fixture
def scripted() -> Iterator[ScoringProcess]:
    made = ScoringProcess((sys.executable, "-c", SCRIPT))
    yield made
    made.close()


def process_of(scorer: ScoringProcess) -> psutil.Process:
    assert scorer._process is not None
    return psutil.Process(scorer._process.pid)


def test_figures_are_those_of_the_scorer_in_this_process(scorer: ScoringProcess) -> None:
    here = PluginScorer()
    lone, long = "half a pair \ud83d", "word " * 20_000
    for prediction, references, metrics, source in (
        ("a b c", ["a b d", "c b"], (), ""),
        ("größer\nals 日本", ["größer"], ("bleu", "chrf"), ""),
        (lone, ["a"], ("rouge", "copy_rate", "repetition"), lone),
        ("short", [long], ("exact_match",), long),
    ):
        assert scorer.score(prediction, references, metrics, source) == here.score(
            prediction, references, metrics, source
        )


def test_process_yields_to_whoever_answers_and_ends_when_it_is_closed(scorer: ScoringProcess) -> None:
    scorer.score("a", ["a"])
    child = process_of(scorer)
    assert child.nice() > psutil.Process().nice()
    scorer.close()
    assert not child.is_running()
    assert scorer.score("a", ["a"])["rouge1"] == 100.0


def test_failing_metric_is_told_and_the_next_text_is_scored(scorer: ScoringProcess) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'missing'"):
        scorer.score("a", ["a"], ["missing"])
    assert scorer.score("a", ["a"])["rouge1"] == 100.0


def test_interrupt_of_the_process_group_does_not_end_it(scorer: ScoringProcess) -> None:
    scorer.score("a", ["a"])
    child = process_of(scorer)
    child.send_signal(signal.SIGINT)
    assert scorer.score("a", ["a"])["rouge1"] == 100.0
    assert process_of(scorer) == child


def test_process_that_dies_costs_one_text(scripted: ScoringProcess) -> None:
    first = scripted.score("word", [])["word"]
    with pytest.raises(UnavailableError):
        scripted.score("die", [])
    assert scripted.score("word", [])["word"] not in {first, float(os.getpid())}


def test_process_that_was_killed_between_two_texts_costs_none(scripted: ScoringProcess) -> None:
    pid = int(scripted.score("word", [])["word"])
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)], timeout=5)
    assert int(scripted.score("word", [])["word"]) != pid


def test_process_that_hangs_is_killed() -> None:
    scorer = ScoringProcess((sys.executable, "-c", SCRIPT), limit_s=0.5)
    with pytest.raises(UnavailableError):
        scorer.score("hang", [])
    assert not [child for child in psutil.Process().children() if SCRIPT in child.cmdline()]


def test_answer_that_comes_in_halves_is_put_together(scripted: ScoringProcess) -> None:
    assert scripted.score("half", []) == {"half": 1.0}


def test_process_does_not_outlive_a_server_that_is_killed() -> None:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        [child] = psutil.Process(server.pid).children()
        server.kill()
    _, left = psutil.wait_procs([child], timeout=10)
    assert not left
