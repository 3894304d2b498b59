"""Divide examples into parts by a hash of their source text, so that no text is on two sides.

A text's part depends on the text and the seed alone: not on the order of the records, nor on what else there is. It
does not know files or models.
"""

from __future__ import annotations

import hashlib
import unicodedata

from training.data.config import SplitConfig
from training.errors import TrainingConfigError


def normalise(text: str) -> str:
    """Return what two texts share that are the same but for case, spacing and Unicode form (NFKC).

    Raises:
        Nothing.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def share_of(key: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on `key` and `salt` alone, evenly spread over keys.

    Raises:
        Nothing.
    """
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:8], "big") / 2**64


def is_held_out(key: str, percent: float, salt: str = "medley") -> bool:
    """Say whether `key` belongs to the held-out part; depends on the text alone, so it never changes between runs.

    Raises:
        Nothing.
    """
    return share_of(key, salt) * 100.0 < percent


class Splitter:
    """Says which part a source text belongs to. May be called from any thread."""

    def __init__(self, config: SplitConfig) -> None:
        """Check the configuration.

        Raises:
            TrainingConfigError: percentages that leave nothing to learn from.
        """
        shares = (config.held_out_percent, config.validation_percent)
        if min(shares) < 0 or max(shares) >= 100:
            raise TrainingConfigError(f"data.split percentages lie in [0, 100), not {shares[0]:g} and {shares[1]:g}")
        self._config = config

    def key(self, source: str) -> str:
        """Return what stands for `source`: equal keys are one text.

        Raises:
            Nothing.
        """
        return normalise(source)

    def is_validation(self, key: str) -> bool:
        """Say whether a text of a source without a validation split is measured on rather than learned.

        Raises:
            Nothing.
        """
        return is_held_out(key, self._config.validation_percent, f"{self._config.seed}/validation")

    def is_held_out(self, key: str) -> bool:
        """Say whether a text of the training split chooses the checkpoint rather than being learned.

        Raises:
            Nothing.
        """
        return is_held_out(key, self._config.held_out_percent, self._config.seed)

    def rank(self, key: str) -> float:
        """Return the place of a text among those held out, so that the same ones remain where only some are wanted.

        Raises:
            Nothing.
        """
        return share_of(key, self._config.seed)
