"""BLEU by sacrebleu, with the signature that makes a figure comparable. Percent.

BLEU of a corpus is no mean over its sentences: counts are summed first. :meth:`BleuScorer.statistics` gives each
sentence's counts, so that intervals can be had by drawing sentences (:mod:`adapters.scoring.bootstrap`).

Source:
    Papineni et al. 2002, https://aclanthology.org/P02-1040; signatures: Post 2018, https://aclanthology.org/W18-6319.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.scoring.overlap import require_examples

_ORDER = 4


class BleuWords(StrEnum):
    """How texts are cut: as sacrebleu does by default (13a: punctuation apart), or at white space alone."""

    DEFAULT = "13a"
    WHITESPACE = "none"


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU of a corpus.

    Attributes:
        score: Percent.
        signature: How it was computed; quote it beside the figure.
    """

    score: float
    signature: str


class BleuScorer:
    """BLEU of sentences and of corpora, case kept. Use one from one thread at a time.

    Args:
        words: How texts are cut.
    """

    def __init__(self, words: BleuWords = BleuWords.DEFAULT) -> None:
        """Load sacrebleu."""
        from sacrebleu.metrics.bleu import BLEU

        self._corpus: Any = BLEU(tokenize=words.value)
        self._sentence: Any = BLEU(tokenize=words.value, effective_order=True)

    def sentence(self, prediction: str, references: Sequence[str]) -> float:
        """Return BLEU of one text; orders it is too short for are left out.

        Raises:
            ValueError: If there are no references.
        """
        return float(self._score(prediction, references).score)

    def corpus(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
        """Return BLEU of a corpus; examples may have different numbers of references.

        Raises:
            ValueError: If there are no examples, an example has no references, or the lengths differ.
        """
        require_examples(predictions, references)
        most = max(map(len, references))
        # sacrebleu wants the first reference of all examples, then the second of all, None where there is none.
        streams = [[each[rank] if rank < len(each) else None for each in references] for rank in range(most)]
        score = self._corpus.corpus_score(list(predictions), streams).score
        return Bleu(float(score), str(self._corpus.get_signature()))

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Return the counts of each sentence, one row each: matches of 1- to 4-grams, n-grams, words, reference words.

        Raises:
            ValueError: If an example has no references, or the lengths differ.
        """
        rows = []
        for prediction, several in zip(predictions, references, strict=True):
            found = self._score(prediction, several)
            rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
        return np.array(rows, dtype=np.int64).reshape(-1, 2 * _ORDER + 2)

    def of_statistics(self, total: NDArray[np.int64]) -> float:
        """Return BLEU in percent of the summed rows of :meth:`statistics`."""
        counts = [int(count) for count in total]
        score = self._corpus.compute_bleu(
            correct=counts[:_ORDER],
            total=counts[_ORDER : 2 * _ORDER],
            sys_len=counts[-2],
            ref_len=counts[-1],
            smooth_method=self._corpus.smooth_method,
        )
        return float(score.score)

    def _score(self, prediction: str, references: Sequence[str]) -> Any:
        if not references:
            raise ValueError("every prediction needs at least one reference")
        return self._sentence.sentence_score(prediction, list(references))
