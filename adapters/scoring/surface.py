"""What a text looks like, whatever it means: repetition, copying, length, and precision with and without clipping.

Beside ROUGE they show texts that were made for the figure: ROUGE-1 does not see order, and without clipping one right
word may be said again and again. All functions take lists of words; any thread may call them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from adapters.scoring.words import Ngrams, ngrams


@dataclass(frozen=True, slots=True)
class NgramPrecision:
    """Share of a text's n-grams that are in a reference; shares of 1.

    Attributes:
        unclipped: Each occurrence counts that is anywhere in a reference.
        clipped: An n-gram counts at most as often as in the reference that has it most often.
    """

    unclipped: float
    clipped: float


def ngram_precision(words: Sequence[str], references: Sequence[Sequence[str]], n: int) -> NgramPrecision:
    """Return the precision of a text's n-grams, without and with clipping; 0 for a text without any.

    Raises:
        ValueError: If ``n`` is below 1.

    Source:
        Papineni et al. 2002, section 2.1, https://aclanthology.org/P02-1040: clipping, over all references.
    """
    predicted = ngrams(words, n)
    highest = reduce(or_, (ngrams(reference, n) for reference in references), Ngrams())
    num_predicted = max(predicted.total(), 1)
    num_known = sum(count for ngram, count in predicted.items() if ngram in highest)
    return NgramPrecision(num_known / num_predicted, (predicted & highest).total() / num_predicted)


def repetition_rate(words: Sequence[str], n: int) -> float:
    """Return the share of a text's n-grams that stand in it already: 1 - distinct / all; 0 for a text without any.

    Raises:
        ValueError: If ``n`` is below 1.

    Source:
        seq-rep-n of Welleck et al. 2019, arXiv:1908.04319.
    """
    found = ngrams(words, n)
    return 1.0 - len(found) / found.total() if found else 0.0


def copy_rate(words: Sequence[str], source: Sequence[str], n: int) -> float:
    """Return the share of a text's n-grams that occur in its source; 0 for a text without any.

    Raises:
        ValueError: If ``n`` is below 1.

    Source:
        1 - the share of novel n-grams of See et al. 2017, section 5, arXiv:1704.04368.
    """
    return ngram_precision(words, [source], n).unclipped


def length_ratio(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return a text's number of words over that of the reference nearest in length, of two the shorter one.

    Raises:
        ValueError: If there are no references.
    """
    if not references:
        raise ValueError("every prediction needs at least one reference")
    nearest = min((len(reference) for reference in references), key=lambda num: (abs(num - len(words)), num))
    return len(words) / max(nearest, 1)
