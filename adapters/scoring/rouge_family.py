"""Every ROUGE with precision, recall and F, for one example, under names that say how several references count.

:class:`adapters.scoring.RougeScorer` gives means of F over a corpus; this is what they are made of, and the rest of the
paper's family. Knows no corpora.
"""

from collections.abc import Callable, Sequence
from functools import partial

from adapters.scoring.overlap import Overlap, ReferenceMode, combine
from adapters.scoring.skip_bigrams import rouge_s, rouge_su
from adapters.scoring.weighted_lcs import DEFAULT_EXPONENT, rouge_w
from adapters.scoring.words import WordCutter

_FROM_ROUGE_SCORE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_MAX_GAP = 4
_OWN: dict[str, Callable[[Sequence[str], Sequence[str]], Overlap]] = {
    f"rougeW{DEFAULT_EXPONENT:g}": rouge_w,
    f"rougeS{_MAX_GAP}": partial(rouge_s, max_gap=_MAX_GAP),
    f"rougeSU{_MAX_GAP}": partial(rouge_su, max_gap=_MAX_GAP),
}
ROUGE_TYPES = (*_FROM_ROUGE_SCORE, *_OWN)


class RougeFamily:
    """Scores one text at a time, with the Porter stemmer.

    Making one takes a second. Methods may be called from any thread; each takes milliseconds of CPU.

    Source:
        ROUGE-1/2/L/Lsum: https://pypi.org/project/rouge-score/0.1.2; the others as their modules say.
    """

    def __init__(self) -> None:
        """Load ``rouge_score``."""
        from rouge_score.rouge_scorer import RougeScorer

        self._cutter = WordCutter(is_stemmed=True)
        self._scorer = RougeScorer(list(_FROM_ROUGE_SCORE), tokenizer=self._cutter)

    def score(
        self, prediction: str, references: Sequence[str], mode: ReferenceMode = ReferenceMode.BEST
    ) -> dict[str, Overlap]:
        """Return each of :data:`ROUGE_TYPES` as ``rouge1_best``: the type, then the mode; shares of 1.

        Raises:
            ValueError: If there are no references.
        """
        per_reference = [self._score_one(prediction, reference) for reference in references]
        return {f"{kind}_{mode}": combine([each[kind] for each in per_reference], mode) for kind in ROUGE_TYPES}

    def _score_one(self, prediction: str, reference: str) -> dict[str, Overlap]:
        scores = self._scorer.score(reference, prediction)
        words, reference_words = self._cutter.tokenize(prediction), self._cutter.tokenize(reference)
        theirs = {
            kind: Overlap(scores[kind].precision, scores[kind].recall, scores[kind].fmeasure)
            for kind in _FROM_ROUGE_SCORE
        }
        return theirs | {kind: score(words, reference_words) for kind, score in _OWN.items()}
