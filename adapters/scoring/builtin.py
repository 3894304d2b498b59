"""The metrics that come with Medley, each as a function that loads it. Knows no manifests.

What they load imports late: ``rouge_score`` and ``sacrebleu`` take a second each.
"""

import unicodedata
from collections.abc import Callable, Sequence

from adapters.scoring.signals import unscored_signals
from adapters.scoring.words import WordCutter

_Score = Callable[[str, Sequence[str], str], dict[str, float]]


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
    """Return one of :func:`adapters.scoring.signals.unscored_signals`; no figure where it can say nothing."""

    def score(prediction: str, _references: Sequence[str], source: str) -> dict[str, float]:
        found = unscored_signals(prediction, source)
        return {name: found[name]} if name in found else {}

    return score


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
