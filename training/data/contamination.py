"""Find training examples that give away what is measured: the same text, or a run of 13 words in common.

Words are compared without case and punctuation. A run that occurs in more than ten training examples is a set phrase
and says nothing.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams, and the ten documents).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.splits import normalise

NUM_WORDS = 13
MAX_EXAMPLES_WITH_PHRASE = 10
_WORD = re.compile(r"\w+")
# Odd and large, so that powers of it stay well mixed modulo 2**64.
_BASE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Document:
    """Texts of one record that belong together: the fields of a source first, and where they come from."""

    origin: str
    parts: tuple[str, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leak:
    """A training example and the evaluation record it gives away, both by origin."""

    train_origin: str
    evaluation_origin: str
    reason: str


class ContaminationIndex:
    """What is measured on, ready to be looked for. Not for several threads at once: it learns words as it reads."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Index every text of the documents."""
        self._words: dict[str, int] = {}
        self._by_text: dict[str, set[str]] = defaultdict(set)
        self._runs: dict[int, tuple[str, tuple[str, ...]]] = {}
        for document in documents:
            for text in (*document.parts, *document.answers):
                self._by_text[normalise(text)].add(document.origin)
                words = _words(text)
                for start, number in enumerate(self._hashes(words).tolist()):
                    self._runs.setdefault(number, (document.origin, tuple(words[start : start + NUM_WORDS])))
        self._numbers = np.array(sorted(self._runs), dtype=np.uint64)

    def leaks(self, documents: Sequence[Document]) -> list[Leak]:
        """Return at most one leak a document, in their order; a document does not give itself away.

        Raises:
            Nothing.
        """
        runs = [self._shared_runs(document) for document in documents]
        times = Counter(number for shared in runs for number in shared)
        found = []
        for document, shared in zip(documents, runs, strict=True):
            telling = [number for number in shared if times[number] <= MAX_EXAMPLES_WITH_PHRASE]
            if same := self._same_text(document):
                found.append(Leak(document.origin, same, "the same text"))
            elif telling:
                origin, words = self._runs[telling[0]]
                found.append(Leak(document.origin, origin, f'13 words in common: "{" ".join(words)}"'))
        return found

    def _same_text(self, document: Document) -> str:
        """Return the first record that holds every part of the document's source, or nothing."""
        holders = [self._by_text.get(normalise(part), set()) for part in document.parts]
        return min(set.intersection(*holders) - {document.origin}, default="") if holders else ""

    def _shared_runs(self, document: Document) -> list[int]:
        """Return the indexed runs of words a document holds, each once, in order."""
        found: dict[int, None] = {}
        for text in (*document.parts, *document.answers):
            words = _words(text)
            hashes = self._hashes(words)
            for start in self._known(hashes):
                number = int(hashes[start])
                origin, run = self._runs[number]
                # A hash may meet by chance; the words decide.
                if origin != document.origin and run == tuple(words[start : start + NUM_WORDS]):
                    found[number] = None
        return list(found)

    def _known(self, hashes: NDArray[np.uint64]) -> list[int]:
        """Return where `hashes` has one that is indexed."""
        if not len(self._numbers):
            return []
        places = np.searchsorted(self._numbers, hashes).clip(max=len(self._numbers) - 1)
        return np.flatnonzero(self._numbers[places] == hashes).tolist()

    def _hashes(self, words: Sequence[str]) -> NDArray[np.uint64]:
        """Return the hash of every run of 13 words."""
        ids = np.array([self._words.setdefault(word, len(self._words) + 1) for word in words], dtype=np.uint64)
        if len(ids) < NUM_WORDS:
            return np.zeros(0, dtype=np.uint64)
        hashes = np.zeros(len(ids) - NUM_WORDS + 1, dtype=np.uint64)
        for offset in range(NUM_WORDS):
            hashes = hashes * np.uint64(_BASE) + ids[offset : len(ids) - NUM_WORDS + 1 + offset]
        return hashes


def _words(text: str) -> list[str]:
    return _WORD.findall(normalise(text))
