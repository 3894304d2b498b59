"""Everything an evaluation says of one example, by name, and what the names mean. Knows no corpora and no intervals."""

from collections.abc import Sequence

from adapters.scoring.bleu import BleuScorer
from adapters.scoring.overlap import ReferenceMode
from adapters.scoring.rouge_family import RougeFamily
from adapters.scoring.surface import copy_rate, length_ratio, ngram_precision, repetition_rate
from adapters.scoring.words import WordCutter

_SURFACE_N = 3


class MetricSuite:
    """Scores one example at a time. Making one takes a second; use one from one thread at a time.

    Args:
        mode: How several references count in ROUGE.
    """

    def __init__(self, mode: ReferenceMode = ReferenceMode.BEST) -> None:
        """Load the scorers."""
        self.mode = mode
        self._rouge = RougeFamily()
        self._bleu = BleuScorer()
        self._stemmed, self._plain = WordCutter(is_stemmed=True), WordCutter(is_stemmed=False)

    def score(self, prediction: str, references: Sequence[str], source: str) -> dict[str, float]:
        """Return every figure of one example; percent, but for ``length_ratio``.

        ``rouge1_best`` is F, ``rouge1_best_precision`` and ``rouge1_best_recall`` its parts, and so for each of
        :data:`adapters.scoring.rouge_family.ROUGE_TYPES`; ``bleu_sentence``; then ``precision1_unclipped`` beside
        ``precision1_clipped``, ``repetition3`` and ``copy3``: shares of words, and of sequences of three.

        Args:
            prediction: The text.
            references: What people wrote, one or more.
            source: What the text was made of.

        Raises:
            ValueError: If there are no references.
        """
        figures: dict[str, float] = {}
        for name, overlap in self._rouge.score(prediction, references, self.mode).items():
            figures |= {
                name: 100.0 * overlap.f,
                f"{name}_precision": 100.0 * overlap.precision,
                f"{name}_recall": 100.0 * overlap.recall,
            }
        figures["bleu_sentence"] = self._bleu.sentence(prediction, references)
        return figures | self._surface(prediction, references, source)

    def _surface(self, prediction: str, references: Sequence[str], source: str) -> dict[str, float]:
        stems = [self._stemmed.tokenize(reference) for reference in references]
        precision = ngram_precision(self._stemmed.tokenize(prediction), stems, 1)
        words = self._plain.tokenize(prediction)
        return {
            "precision1_unclipped": 100.0 * precision.unclipped,
            "precision1_clipped": 100.0 * precision.clipped,
            f"repetition{_SURFACE_N}": 100.0 * repetition_rate(words, _SURFACE_N),
            f"copy{_SURFACE_N}": 100.0 * copy_rate(words, self._plain.tokenize(source), _SURFACE_N),
            "length_ratio": length_ratio(words, [self._plain.tokenize(reference) for reference in references]),
        }
