"""ROUGE-S and ROUGE-SU: pairs of words in their order, with others between them. Any thread may call.

Source:
    Lin 2004, section 4, https://aclanthology.org/W04-1013.
"""

from collections import Counter
from collections.abc import Sequence

from adapters.scoring.overlap import Overlap
from adapters.scoring.words import Ngrams, ngrams


def rouge_s(prediction: Sequence[str], reference: Sequence[str], max_gap: int | None = None) -> Overlap:
    """Return ROUGE-S of two lists of words.

    Args:
        prediction: The text's words.
        reference: The reference's words.
        max_gap: Most words between the two of a pair (the paper's skip distance); 0 makes it ROUGE-2, None is no limit.

    Raises:
        ValueError: If ``max_gap`` is negative.
    """
    return _overlap(_skip_bigrams(prediction, max_gap), _skip_bigrams(reference, max_gap))


def rouge_su(prediction: Sequence[str], reference: Sequence[str], max_gap: int | None = None) -> Overlap:
    """Return ROUGE-SU: as :func:`rouge_s`, with single words as units beside the pairs.

    So a text with the reference's words in reverse is worth more than one that shares none.

    Raises:
        ValueError: If ``max_gap`` is negative.
    """
    return _overlap(
        _skip_bigrams(prediction, max_gap) + ngrams(prediction, 1),
        _skip_bigrams(reference, max_gap) + ngrams(reference, 1),
    )


def _skip_bigrams(words: Sequence[str], max_gap: int | None) -> Ngrams:
    if max_gap is not None and max_gap < 0:
        raise ValueError("at least 0 words are between two")
    reach = len(words) if max_gap is None else max_gap + 1
    return Counter((word, other) for place, word in enumerate(words) for other in words[place + 1 : place + 1 + reach])


def _overlap(predicted: Ngrams, referenced: Ngrams) -> Overlap:
    return Overlap.of_counts((predicted & referenced).total(), predicted.total(), referenced.total())
