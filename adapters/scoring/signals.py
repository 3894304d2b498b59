"""What an answer looks like by itself, without any reference: how long, how repetitive, how much of it is copied.

Any thread may call. Knows no adapters and no requests.
"""

import re

from adapters.scoring.surface import copy_rate, repetition_rate

# Longer texts are looked at up to here: what is told of them hardly changes, and the time it takes would.
MAX_SOURCE_CHARS = 8_000
_WORD = re.compile(r"\w+")
_N = 3


def unscored_signals(prediction: str, source: str) -> dict[str, float]:
    """Return the signals of an answer, none for an empty one.

    ``repetition`` and ``copy_rate`` are shares of sequences of three words, in percent: those that the answer has
    already had, and those that stand in the source. ``length_ratio`` is the answer's words over the source's.

    Args:
        prediction: The answer.
        source: What it was made of; empty where that is not known.
    """
    words = _words(prediction)
    if not words:
        return {}
    signals = {"repetition": 100.0 * repetition_rate(words, _N)}
    if source_words := _words(source):
        signals["copy_rate"] = 100.0 * copy_rate(words, source_words, _N)
        signals["length_ratio"] = len(words) / len(source_words)
    return signals


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:MAX_SOURCE_CHARS].casefold())
