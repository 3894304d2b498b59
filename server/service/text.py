"""Token ids to text while they arrive: whole characters only, and stop strings across chunk borders.

One :class:`TextStream` per request, used from the event loop's thread. Knows no engine and no protocol.
"""

from collections.abc import Sequence

from server.service.tokenizer import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns arriving ids into text without decoding the whole answer again at each step.

    Only a short tail is decoded: the last complete piece as context (decoders treat a text's first token differently)
    and what came since. A piece that ends within a character is held back until the character is complete.

    Args:
        tokenizer: Decodes ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start with no text."""
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._fresh: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take new ids and return the text they complete."""
        self._fresh.extend(token_ids)
        text = self._fresh_text()
        if not text or text.endswith(_BROKEN):
            return ""
        self._context, self._fresh = self._fresh, []
        self._context_text = self._tokenizer.decode(self._context)
        return text

    def finish(self) -> str:
        """Return what was held back, broken characters as U+FFFD."""
        text = self._fresh_text()
        self._fresh = []
        return text

    def _fresh_text(self) -> str:
        if not self._fresh:
            return ""
        return self._tokenizer.decode([*self._context, *self._fresh])[len(self._context_text) :]


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces, one comparison automaton per string.

    Text is held back as long as it may be the beginning of a stop string, and no longer.

    Args:
        stops: The strings, none empty; no strings hold nothing back.

    Source:
        Knuth, Morris, Pratt, "Fast pattern matching in strings", SIAM J. Comput. 6(2), 1977.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Build the failure tables."""
        self._stops = [(stop, _failure_table(stop)) for stop in stops]
        self._num_matched = [0] * len(self._stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Take new text and return what can be shown; after a match nothing more comes."""
        if self.found:
            return ""
        if not self._stops:
            return text
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            if num_stop_chars := self._advance(character):
                self.found, self._held = True, ""
                return pending[: position - num_stop_chars]
        num_shown = len(pending) - max(self._num_matched)
        self._held = pending[num_shown:]
        return pending[:num_shown]

    def finish(self) -> str:
        """Return what was held back, as no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        longest = 0
        for index, (stop, failure) in enumerate(self._stops):
            num_matched = self._num_matched[index]
            while num_matched and stop[num_matched] != character:
                num_matched = failure[num_matched - 1]
            num_matched += stop[num_matched] == character
            self._num_matched[index] = num_matched
            if num_matched == len(stop):
                longest = max(longest, num_matched)
        return longest


class TextStream:
    """Ids in, text out, until a stop string.

    Args:
        tokenizer: Decodes ids.
        stops: Strings that end the text; they are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        """Start with no text."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take new ids and return the text that can be shown."""
        return self._stops.feed(self._detokenizer.feed(token_ids))

    def finish(self) -> str:
        """Return the text that was held back, as no more ids come."""
        return self._stops.feed(self._detokenizer.finish()) + self._stops.finish()


def _failure_table(stop: str) -> list[int]:
    table = [0] * len(stop)
    num_matched = 0
    for index in range(1, len(stop)):
        while num_matched and stop[num_matched] != stop[index]:
            num_matched = table[num_matched - 1]
        num_matched += stop[num_matched] == stop[index]
        table[index] = num_matched
    return table
