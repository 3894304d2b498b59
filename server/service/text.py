"""Token ids to text while they arrive: whole characters only, and stop strings across chunk borders.

One :class:`TextStream` per request, used from the event loop's thread. Knows no engine and no protocol.
"""

from collections.abc import Sequence

from server.service.tokenizer import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so at most so many tokens can be the beginning of one.
_MAX_OPEN = 3
# Tokens kept at most while none ends with a character; broken text is shown so many tokens late.
_MAX_HELD = 16
# Tokens before a text that are looked at: so many, or a few more to begin with a whole character.
_NUM_BEFORE = range(8, 8 + _MAX_OPEN + 1)


class Detokenizer:
    """Turns arriving ids into text without decoding the whole answer again at each step.

    Only a short tail is decoded: the last complete piece as context (decoders treat a text's first token differently)
    and what came since. A piece that ends within a character is held back until the character is complete.

    Args:
        tokenizer: Decodes ids.
        before: The tokens that the text goes on from; none where it begins. A character that they end within is
            given with the text that completes it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """Start with no text."""
        self._tokenizer = tokenizer
        self._context, self._fresh, self._num_shown = _end_of(tokenizer, before)
        self._num_context_chars = len(tokenizer.decode(self._context).rstrip(_BROKEN))

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take new ids and return the text they complete."""
        self._fresh.extend(token_ids)
        for num_open in range(min(len(self._fresh), _MAX_OPEN) + 1):
            num_settled = len(self._fresh) - num_open
            text = self._text_of_first(num_settled)
            if not text.endswith(_BROKEN):
                return self._settle(text, num_settled)
        return self._unsettled()

    def finish(self) -> str:
        """Return what was held back, broken characters as U+FFFD."""
        text = self._text_of_first(len(self._fresh))[self._num_shown :]
        self._num_shown += len(text)
        return text

    def _settle(self, text: str, num_settled: int) -> str:
        """Return what is new in a text that no later token changes, and go on from its tokens."""
        new, num_ahead = text[self._num_shown :], max(0, self._num_shown - len(text))
        if len(text) > self._num_context_chars:
            self._context, self._fresh = self._fresh[:num_settled], self._fresh[num_settled:]
            self._num_context_chars = len(self._tokenizer.decode(self._context))
            self._num_shown = self._num_context_chars + num_ahead
        elif text:
            # They have no text. Where a text begins, one may stand for the space that is stripped there, and counts.
            del self._fresh[:num_settled]
        return new

    def _unsettled(self) -> str:
        """Return what is new where no token ends with a character: in broken text, or where each has parts of two."""
        text = self._text_of_first(len(self._fresh))
        if len(self._fresh) > _MAX_HELD:
            new, self._context, self._fresh = text[self._num_shown :], self._fresh[-_MAX_OPEN:], []
            self._num_shown = self._num_context_chars = len(self._tokenizer.decode(self._context))
            return new
        new = text.rstrip(_BROKEN)[self._num_shown :]
        self._num_shown += len(new)
        return new

    def _text_of_first(self, num_tokens: int) -> str:
        return self._tokenizer.decode([*self._context, *self._fresh[:num_tokens]])


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

    def feed(self, text: str, *, may_end: bool = True) -> str:
        """Take new text and return what can be shown; after a match nothing more comes.

        Args:
            text: The text.
            may_end: Whether a stop string that is complete within it counts.
        """
        if self.found:
            return ""
        if not self._stops:
            return text
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            num_stop_chars = self._advance(character)
            if num_stop_chars and may_end:
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
                self._num_matched[index] = failure[-1]
        return longest


class TextStream:
    """Ids in, text out, until a stop string.

    Args:
        tokenizer: Decodes ids.
        stops: Strings that end the text; they are not part of it.
        before: The tokens that the text goes on from; none where it begins.
        min_new_tokens: No stop string counts that is complete within so many tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], *, before: Sequence[int] = (), min_new_tokens: int = 0
    ) -> None:
        """Start with no text."""
        self._detokenizer = Detokenizer(tokenizer, before)
        self._stops = StopStrings(stops)
        self._num_unending = min_new_tokens

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take new ids and return the text that can be shown."""
        if not self._num_unending:
            return self._stops.feed(self._detokenizer.feed(token_ids))
        first, rest = token_ids[: self._num_unending], token_ids[self._num_unending :]
        self._num_unending -= len(first)
        text = self._stops.feed(self._detokenizer.feed(first), may_end=False)
        return text + self._stops.feed(self._detokenizer.feed(rest))

    def finish(self) -> str:
        """Return the text that was held back, as no more ids come."""
        return self._stops.feed(self._detokenizer.finish()) + self._stops.finish()


def _end_of(tokenizer: Tokenizer, before: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Return the last few tokens, those that only begin a character apart, and how many characters they show.

    Some decoders spoil a whole run of bytes for one that is missing, so both ends are looked for together.
    """
    if not before:
        return [], [], 0
    for num_open in range(min(len(before), _MAX_OPEN) + 1):
        end = len(before) - num_open
        for num_tokens in (*_NUM_BEFORE, end):
            begin = max(0, end - num_tokens)
            text = tokenizer.decode(before[begin:end])
            is_whole = not text.endswith(_BROKEN) or (not num_open and _ends_as_written(tokenizer, before))
            if is_whole and not text.startswith(_BROKEN) and (text or not begin):
                # A token that begins a character may hold others before it.
                shown = tokenizer.decode(before[begin:]).rstrip(_BROKEN)
                return list(before[begin:end]), list(before[end:]), max(len(text), len(shown))
    return list(before), [], len(tokenizer.decode(before).rstrip(_BROKEN))


def _ends_as_written(tokenizer: Tokenizer, before: Sequence[int]) -> bool:
    """Return whether the caller wrote the very character that stands for broken ones."""
    written = tokenizer.encode(_BROKEN, add_special_tokens=False)
    return list(before[-len(written) :]) == written


def _failure_table(stop: str) -> list[int]:
    table = [0] * len(stop)
    num_matched = 0
    for index in range(1, len(stop)):
        while num_matched and stop[num_matched] != stop[index]:
            num_matched = table[num_matched - 1]
        num_matched += stop[num_matched] == stop[index]
        table[index] = num_matched
    return table
