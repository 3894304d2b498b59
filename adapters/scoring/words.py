"""Texts to words and n-grams, as ``rouge_score`` cuts them: lower case, letters a to z and digits, stemmed or not.

Any thread may call. Knows no scores.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

Ngrams = Counter[tuple[str, ...]]
_NUM_KEPT_TEXTS = 4096


class WordCutter:
    """Cuts texts into words; the last few thousand texts are remembered, as every metric asks for the same ones.

    Args:
        is_stemmed: Whether words of four letters or more lose their endings (Porter's stemmer), as in published ROUGE.

    Source:
        ROUGE-1.5.5's words, as https://pypi.org/project/rouge-score/0.1.2 has them.
    """

    def __init__(self, *, is_stemmed: bool) -> None:
        """Load the tokenizer; importing it takes a second."""
        from rouge_score.tokenizers import DefaultTokenizer

        self._tokenizer: Any = DefaultTokenizer(use_stemmer=is_stemmed)
        self._cut = lru_cache(maxsize=_NUM_KEPT_TEXTS)(self._words)

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, in order; the name is the one ``rouge_score`` asks a tokenizer for."""
        return list(self._cut(text))

    def _words(self, text: str) -> tuple[str, ...]:
        return tuple(self._tokenizer.tokenize(text))


def ngrams(words: Sequence[str], n: int) -> Ngrams:
    """Return how often each sequence of ``n`` words occurs; none in a text of fewer words.

    Raises:
        ValueError: If ``n`` is below 1.
    """
    if n < 1:
        raise ValueError("an n-gram has one word or more")
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
