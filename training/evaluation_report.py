"""An evaluation written down: a Markdown report for people, JSON for programs. It measures nothing."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from adapters.scoring.bootstrap import Interval
from adapters.scoring.rouge_family import ROUGE_TYPES
from training.engine_generation import GREEDY
from training.evaluation import EvaluationCase, EvaluationResult, SystemResult

_SURFACE = {
    "precision1_unclipped": "words in a reference, unclipped",
    "precision1_clipped": "clipped",
    "repetition3": "repeated 3-grams",
    "copy3": "3-grams from the source",
    "length_ratio": "length ratio",
}
_ABOUT_SURFACE = (
    "In percent, but for the length ratio. A high ROUGE-1 with many repeated 3-grams, with far more unclipped than "
    "clipped words, or with a length ratio far from 1 was made for the figure and not for a reader; 3-grams from the "
    "source show how much is copied."
)
_BESIDE_BASE = ("rouge1", "rouge2", "rougeL")
_EXCERPT_CHARS = 600


def report_markdown(result: EvaluationResult, num_examples: int = 5) -> str:
    """Return the report: figures with intervals, signs of texts made for the figure, and examples side by side.

    Args:
        result: an evaluation.
        num_examples: how many cases are shown, taken evenly from all of them.

    Raises:
        Nothing.
    """
    surface = [(each.name, [_number(each.means[name]) for name in _SURFACE]) for each in result.systems]
    parts = [
        "# Evaluation",
        _how(result),
        _table([*_rouge_titles(), "BLEU"], [(each.name, _quality(result, each)) for each in result.systems]),
        "## What ROUGE does not see",
        _ABOUT_SURFACE,
        _table(list(_SURFACE.values()), surface),
    ]
    if len(result.systems) > 1:
        parts += ["## Beside the " + result.systems[0].name, _beside_base(result)]
    parts += ["## Examples", *(_example(result, index) for index in _evenly(len(result.cases), num_examples))]
    return "\n\n".join(parts) + "\n"


def report_json(result: EvaluationResult) -> str:
    """Return everything the result holds, every answer and every figure of every case included, as JSON.

    Raises:
        Nothing.
    """
    return json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"


def _how(result: EvaluationResult) -> str:
    options, bootstrap = result.options, result.options.bootstrap
    chosen = "greedy" if options.sampling == GREEDY else f"temperature {options.sampling.temperature:g}"
    return (
        f"{len(result.cases)} cases, {chosen}, at most {options.max_new_tokens} new tokens. ROUGE: F-measure in "
        f"percent, stemmed; of several references: {options.mode}. BLEU: `{result.systems[0].bleu_signature}`. In "
        f"brackets: {100.0 * bootstrap.level:g} % of {bootstrap.num_resamples:,} bootstrap draws of the cases, seed "
        f"{bootstrap.seed}."
    )


def _rouge_titles() -> list[str]:
    return [f"ROUGE-{kind.removeprefix('rouge')}" for kind in ROUGE_TYPES]


def _quality(result: EvaluationResult, system: SystemResult) -> list[str]:
    rouge = [_with_interval(system.means[f"{kind}_{result.options.mode}"]) for kind in ROUGE_TYPES]
    return [*rouge, _with_interval(system.bleu)]


def _beside_base(result: EvaluationResult) -> str:
    rows = [
        (each.name, [_difference(each.beside_base[f"{kind}_{result.options.mode}"]) for kind in _BESIDE_BASE])
        for each in result.systems[1:]
    ]
    titles = [f"ROUGE-{kind.removeprefix('rouge')}" for kind in _BESIDE_BASE]
    return "Differences on the same cases (paired); in bold where zero is outside the interval.\n\n" + _table(
        titles, rows
    )


def _table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = ["| | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows)])


def _example(result: EvaluationResult, index: int) -> str:
    case = result.cases[index]
    said = [("reference", reference) for reference in case.references]
    said += [(system.name, system.predictions[index]) for system in result.systems]
    answers = "\n".join(f"- **{name}**: {_one_line(text)}" for name, text in said)
    return f"### Case {index + 1}\n\n{_excerpt(case)}\n\n{answers}"


def _excerpt(case: EvaluationCase) -> str:
    text = case.source if len(case.source) <= _EXCERPT_CHARS else case.source[:_EXCERPT_CHARS] + " …"
    return textwrap.indent(text, "> ", lambda _line: True).replace("\n", "  \n")


def _evenly(num: int, num_wanted: int) -> list[int]:
    num_shown = min(num, num_wanted)
    return [place * num // num_shown for place in range(num_shown)]


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "*(nothing)*"


def _number(interval: Interval) -> str:
    return f"{interval.value:.2f}" if interval.value < 10.0 else f"{interval.value:.1f}"


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _difference(interval: Interval) -> str:
    text = f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    return f"**{text}**" if interval.is_clear else text
