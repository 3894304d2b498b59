"""The metrics that come with Medley, each as a function that loads it. Knows no manifests.

What they load imports late: ``rouge_score`` and ``sacrebleu`` take a second each.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from adapters.scoring.surface import copy_rate, repetition_rate
from adapters.scoring.words import WordCutter

_Score = Callable[[str, Sequence[str], str], dict[str, float]]
_SURFACE_N = 3
_MAX_CHARS = 8_000
_WORD = re.compile(r"\w+")


def load_rouge() -> _Score:
    """Return ROUGE-1/2/L/Lsum in percent, the best reference for each, as :class:`adapters.scoring.RougeScorer` has it.

    By ``rouge_score`` itself: what ``evaluate`` adds for one text (a table written and read) takes ten times as long
    as the scores, which counts where a server scores a hundred texts a second.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(list(kinds), tokenizer=WordCutter(is_stemmed=True))

    def score(prediction: str, references: Sequence[str], _source: str) -> dict[str, float]:
        best = scorer.score_multi(list(references), prediction)
        return {kind: 100.0 * float(best[kind].fmeasure) for kind in kinds}

    return score


def load_bleu() -> _Score:
    """Return BLEU of one text in percent; its mean over texts is not BLEU of a corpus."""
    from adapters.scoring.bleu import BleuScorer

    scorer = BleuScorer()
    return lambda prediction, references, _source: {"bleu_sentence": scorer.sentence(prediction, references)}


def load_chrf() -> _Score:
    """Return chrF of one text in percent: character 1- to 6-grams, recall weighing twice, the best reference.

    Source:
        Popović 2015, https://aclanthology.org/W15-3049, by sacrebleu.
    """
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()

    def score(prediction: str, references: Sequence[str], _source: str) -> dict[str, float]:
        return {"chrf_sentence": float(scorer.sentence_score(prediction, list(references)).score)}

    return score


def load_exact_match() -> _Score:
    """Return 100 if a text is one of its references, but for case, spaces and forms of the same character; else 0."""

    def score(prediction: str, references: Sequence[str], _source: str) -> dict[str, float]:
        wanted = {_plain(reference) for reference in references}
        return {"exact_match": 100.0 * (_plain(prediction) in wanted)}

    return score


def load_signal(name: str) -> _Score:
    """Return one of ``repetition`` (percent), ``copy_rate`` (percent) and ``length_ratio``; nothing for an empty text.

    The first two count sequences of three words; the ratio is that of the numbers of words of answer and source. Words
    are of any script here, as nothing is compared with published figures. What comes after 8,000 characters is not
    looked at: it hardly changes these figures, and the time would.

    Raises:
        KeyError: If it is none of these.
    """
    figure = _SIGNALS[name]

    def score(prediction: str, _references: Sequence[str], source: str) -> dict[str, float]:
        words = _words(prediction)
        return {name: figure(words, _words(source))} if words else {}

    return score


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:_MAX_CHARS].casefold())


def _repetition(words: Sequence[str], _source: Sequence[str]) -> float:
    return 100.0 * repetition_rate(words, _SURFACE_N)


def _copy_rate(words: Sequence[str], source: Sequence[str]) -> float:
    return 100.0 * copy_rate(words, source, _SURFACE_N)


def _length_ratio(words: Sequence[str], source: Sequence[str]) -> float:
    return len(words) / max(len(source), 1)


_SIGNALS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "repetition": _repetition,
    "copy_rate": _copy_rate,
    "length_ratio": _length_ratio,
}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
