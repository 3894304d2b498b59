"""How fast an engine works, by what it did lately, and which deadlines it cannot meet.

Plain Python: no torch, no asyncio, no clock of its own. What is measured is measured once a step or once a row, never
once a token of a row, and old work fades.

A request is turned away on an estimate only where others wait for the room it would take, and only once enough rows
have started and ended to go by: an idle engine, or one that has just started, tries everything. It is answered with
``DEADLINE_EXCEEDED``, not with ``RESOURCE_EXHAUSTED``: whoever sets a deadline has to expect that code and would get it
later anyway, while the other one asks clients, and the retry policies of gRPC, to send the request again to a server
that has too much to do.
"""

import math
from dataclasses import dataclass

from server.core.errors import DeadlineExceededError, Refusal

_WINDOW_S = 2.0
_WINDOW_ROWS = 64
# Steps of a batch that is not full are short, and many in a second: after them a longer memory would take long to tell
# what steps are like now.
_WINDOW_STEPS = 32
_MIN_NUM_ROWS = 16
# An answer that was cut short, of whole ones: were it none at all, answers would look endless where none is whole.
_CUT_COUNT = 1 / 16

MARGIN = 1.25
"""What estimates are multiplied by. Beyond capacity everybody waits behind as many as the estimate allows: were it just
right, half of all answers would be late, and what was done for them lost."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What an engine did lately.

    Attributes:
        start_s: Seconds from one row's start to the next one's, while rows wait for room.
        first_s: Seconds from a row's start to its first token.
        step_s: Seconds from one token of a row to its next.
        num_tokens: Tokens of a long answer, than which few are longer: to go by the mean would leave half unfinished.
    """

    start_s: float
    first_s: float
    step_s: float
    num_tokens: float

    def wait_s(self, num_ahead: int) -> float:
        """Return how long a row waits behind so many others."""
        return num_ahead * self.start_s

    def answer_s(self, max_new_tokens: int) -> float:
        """Return how long an answer takes from its start: as long as others took, or less if its bound says so."""
        return self.first_s + self.step_s * max(0.0, min(self.num_tokens, max_new_tokens) - 1)

    def check_waiting(self, time_left_s: float, max_new_tokens: int, num_ahead: int) -> None:
        """Do nothing if a request may wait behind so many others.

        Raises:
            DeadlineExceededError: If there are others, and its answer would not be whole in the time it has left.
        """
        late_s = MARGIN * (self.wait_s(num_ahead) + self.answer_s(max_new_tokens)) - time_left_s
        if num_ahead and late_s > 0:
            raise DeadlineExceededError(
                f"the answer would come about {late_s:.1f} s after its deadline: {num_ahead} requests are before it",
                refusal=Refusal.TOO_LATE_TO_WAIT,
            )

    def check_starting(self, time_left_s: float, max_new_tokens: int) -> None:
        """Do nothing if a request whose turn has come may start; ask only while others wait.

        Raises:
            DeadlineExceededError: If its answer would not be whole in the time it has left.
        """
        late_s = MARGIN * self.answer_s(max_new_tokens) - time_left_s
        if late_s > 0:
            raise DeadlineExceededError(
                f"it waited too long: the answer would come about {late_s:.1f} s after its deadline",
                refusal=Refusal.TOO_LATE_TO_START,
            )


class PaceMeter:
    """Measures it. Step thread only."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._starts = _Mean(max_total=_WINDOW_S, least_count=_MIN_NUM_ROWS)
        self._steps = _Mean(max_count=_WINDOW_STEPS)
        self._firsts = _Mean(max_count=_WINDOW_ROWS)
        self._lengths = _Mean(max_count=_WINDOW_ROWS)
        self._squares = _Mean(max_count=_WINDOW_ROWS)
        self._num_started = self._num_ended = 0

    def stepped(self, duration_s: float, num_started: int, *, is_room_short: bool) -> None:
        """Count a step.

        Args:
            duration_s: From its beginning to the next one's.
            num_started: Rows that left the queue at it.
            is_room_short: Whether rows waited on that more room would have let start.
        """
        self._steps.add(duration_s, 1)
        if is_room_short:
            self._starts.add(duration_s, num_started)
            self._num_started += num_started

    def begun(self, duration_s: float) -> None:
        """Count a row's first token, which came so long after its start."""
        self._firsts.add(duration_s, 1)

    def ended(self, num_tokens: int, *, is_whole: bool) -> None:
        """Count an answer's end.

        One that ran out of time counts with the tokens it had, but hardly as one more: what is left of a full engine
        would else be the short ones, their mean would fall, and more and more would be begun that cannot be finished.
        """
        count = 1.0 if is_whole else _CUT_COUNT
        self._lengths.add(num_tokens, count)
        self._squares.add(num_tokens**2, count)
        self._num_ended += is_whole

    @property
    def pace(self) -> Pace | None:
        """The figures; None until enough rows had to wait, and enough have ended."""
        if min(self._num_started, self._num_ended) < _MIN_NUM_ROWS:
            return None
        mean = self._lengths.value
        spread = math.sqrt(max(0.0, self._squares.value - mean**2))
        return Pace(self._starts.value, self._firsts.value, self._steps.value, mean + 2 * spread)


class _Mean:
    """A mean in which what is older than about one window counts half, and so on.

    By its total a window ends only once it has so many counts: else it would fade while nothing is counted, and the
    mean grow without bound.
    """

    def __init__(self, *, max_total: float = math.inf, max_count: float = math.inf, least_count: int = 0) -> None:
        self._max_total, self._max_count, self._least_count = 2 * max_total, 2 * max_count, 2 * least_count
        self._total = self._count = 0.0

    def add(self, value: float, count: float) -> None:
        self._total += value
        self._count += count
        is_long = self._total > self._max_total and self._count >= self._least_count
        if is_long or self._count > self._max_count:
            self._total, self._count = self._total / 2, self._count / 2

    @property
    def value(self) -> float:
        return self._total / self._count if self._count else 0.0
