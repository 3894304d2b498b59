"""Metrics by name: what each gives, which one an adapter gets, and which names are refused."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from sacrebleu.metrics.chrf import CHRF

from adapters.errors import InvalidAdapterError
from adapters.scoring import plugins
from adapters.scoring.bleu import BleuScorer
from adapters.scoring.plugins import (
    BUILT_IN,
    MetricPlugin,
    PluginScorer,
    check_metrics,
    joined_metrics,
    known_metrics,
    live_figures,
    metric_suite,
    metrics_of,
    percent_figures,
)

ROOT = Path(__file__).parents[3]
ANSWER, REFERENCES, SOURCE = "the cat sat", ["the cat ran away"], "the cat sat on the mat and the dog ran"


def load_shouting() -> plugins.ScoreOne:
    def score(prediction: str, _references: Sequence[str], _source: str) -> dict[str, float]:
        return {"shouting": 100.0 * prediction.isupper()}

    return score


SHOUTING = MetricPlugin(load_shouting, ("shouting",), needs_references=False)
VOLUME = MetricPlugin(load_shouting, ("volume",), needs_references=False, is_percent=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """What packages register; known metrics are looked up anew before and after."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "medley.metrics" else [])
    known_metrics.cache_clear()
    yield points
    known_metrics.cache_clear()


def test_each_built_in_metric_gives_the_figures_it_says() -> None:
    for name, plugin in BUILT_IN.items():
        assert tuple(metric_suite([name])(ANSWER, REFERENCES, SOURCE)) == plugin.figures


def test_figures_in_percent_are_all_but_ratios(installed: list[EntryPoint]) -> None:
    assert {"rougeL", "bleu_sentence", "chrf_sentence", "exact_match", "copy_rate"} <= percent_figures()
    assert "length_ratio" not in percent_figures()
    installed += [EntryPoint(name, f"{__name__}:{name.upper()}", "medley.metrics") for name in ("shouting", "volume")]
    known_metrics.cache_clear()
    assert {"shouting", "volume"} & percent_figures() == {"shouting"}


def test_live_figures_are_those_in_percent_that_need_no_source() -> None:
    assert live_figures(["exact_match", "length_ratio", "copy_rate", "repetition"]) == ("exact_match", "repetition")


def test_rouge_of_a_hand_computed_example_matches() -> None:
    # 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 bigrams, common subsequence of 2.
    expected = {"rouge1": 57.142857, "rouge2": 40.0, "rougeL": 57.142857, "rougeLsum": 57.142857}
    assert metric_suite(["rouge"])(ANSWER, REFERENCES, "") == pytest.approx(expected)


def test_translation_metrics_are_sacrebleus() -> None:
    figures = metric_suite(["bleu", "chrf"])("das ist gut so", ["das ist nicht gut so", "gut"], "")
    expected = {
        "bleu_sentence": BleuScorer().sentence("das ist gut so", ["das ist nicht gut so", "gut"]),
        "chrf_sentence": CHRF().sentence_score("das ist gut so", ["das ist nicht gut so", "gut"]).score,
    }
    assert figures == expected
    assert all(0 < figure < 100 for figure in figures.values())


@pytest.mark.parametrize(("answer", "expected"), [(" Sports\n", 100.0), ("ﬁnance", 100.0), ("sport", 0.0), ("", 0.0)])
def test_exact_match_passes_over_case_spaces_and_forms_of_a_character(answer: str, expected: float) -> None:
    assert metric_suite(["exact_match"])(answer, ["finance", "sports"], "") == {"exact_match": expected}


def test_signals_as_metrics_of_a_hand_counted_example_match() -> None:
    # 3-grams: abc bca cab abc; one of four again. Of the source's: abc only, twice. 6 words of 8.
    found = metric_suite(["repetition", "copy_rate", "length_ratio"])("a b c a b c", [], "x a b c y z v w")
    assert found == {"repetition": 25.0, "copy_rate": 50.0, "length_ratio": 0.75}


def test_metric_without_what_it_needs_gives_no_figure() -> None:
    scorer = PluginScorer()
    assert scorer.score("a b c", [], ("rouge", "repetition")) == {"repetition": 0.0}
    assert set(scorer.score("a", ["a"], ("copy_rate", "exact_match"))) == {"exact_match"}


def test_scorer_without_names_gives_rouge_and_loads_each_metric_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_loads = 0

    def load() -> plugins.ScoreOne:
        nonlocal num_loads
        num_loads += 1
        return load_shouting()

    monkeypatch.setattr(plugins, "known_metrics", lambda: {**BUILT_IN, "loud": MetricPlugin(load, ("shouting",))})
    scorer = PluginScorer()
    assert set(scorer.score("a", ["a"])) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert [scorer.score(text, ["a"], ("loud",))["shouting"] for text in ("A", "a")] == [100.0, 0.0]
    assert num_loads == 1


@pytest.mark.parametrize(
    ("metrics", "task", "expected"),
    [
        ((), "summarization", ("rouge",)),
        ((), "", ("rouge",)),
        ((), "translation", ("bleu", "chrf", "rouge")),
        ((), "Question Answering", ("exact_match", "rouge")),
        ((), "question_answering", ("exact_match", "rouge")),
        (("chrf",), "translation", ("chrf",)),
        (("gone", "chrf"), "translation", ("chrf",)),
        (("gone",), "classification", ("exact_match",)),
    ],
)
def test_metrics_of_an_adapter_are_its_own_or_its_tasks(
    metrics: tuple[str, ...], task: str, expected: tuple[str, ...]
) -> None:
    assert metrics_of(metrics, task) == expected


def test_joined_metrics_are_all_once_and_rouge_for_the_base() -> None:
    assert joined_metrics([("bleu", "rouge"), ("rouge", "chrf")]) == ("bleu", "rouge", "chrf")
    assert joined_metrics([]) == ("rouge",)


def test_check_metrics_unknown_is_refused_and_told_what_there_is() -> None:
    assert check_metrics(["rouge", "bleu", "rouge"]) == ("rouge", "bleu")
    with pytest.raises(
        InvalidAdapterError, match=r"no metric 'rogue'; metrics are bleu, chrf, copy_rate, exact_match, length_ratio"
    ):
        check_metrics(["bleu", "rogue"])
    with pytest.raises(InvalidAdapterError, match="17 metrics are named; at most 16"):
        check_metrics(["rouge"] * 17)


def test_metric_of_an_installed_package_is_known(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("shouting", f"{__name__}:SHOUTING", "medley.metrics"))
    assert metric_suite(["shouting"])("HELLO", [], "") == {"shouting": 100.0}


def test_package_that_is_broken_or_takes_a_known_name_changes_nothing(
    installed: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    installed += [
        EntryPoint("broken", "no.such.module:METRIC", "medley.metrics"),
        EntryPoint("number", "math:pi", "medley.metrics"),
        EntryPoint("rouge", "adapters.scoring.plugins:BUILT_IN", "medley.metrics"),
    ]
    assert dict(known_metrics()) == dict(BUILT_IN)
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 3


def test_import_of_the_names_loads_no_metric() -> None:
    code = (
        "import sys, adapters.scoring.plugins as p; p.check_metrics(['rouge', 'bleu']);"
        "print([name for name in ('rouge_score', 'sacrebleu', 'evaluate', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
