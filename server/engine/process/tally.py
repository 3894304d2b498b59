"""What an engine's process tells of itself, added up over all the processes there were. Event loop's thread."""

from dataclasses import dataclass, field

from server.engine.pace import Pace
from server.engine.process.wire import COUNTERS, LEVELS, Report
from server.observability.durations import DurationCounts


@dataclass(frozen=True, slots=True)
class _Told:
    """What one process told last."""

    counters: tuple[int, ...] = (0,) * len(COUNTERS)
    levels: tuple[int, ...] = (0,) * len(LEVELS)
    resident: tuple[str, ...] = ()
    load_times: DurationCounts = field(default=DurationCounts())
    pace: Pace | None = None


class Tally:
    """Adds up what processes report; what they counted goes on counting when one dies."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._now = self._before = _Told()

    def take(self, report: Report) -> None:
        """Take what the present process reports."""
        now = self._now
        self._now = _Told(
            report.counters,
            report.levels,
            now.resident if report.resident is None else report.resident,
            now.load_times if report.load_times is None else report.load_times,
            now.pace if report.pace is None else report.pace,
        )

    def died(self) -> None:
        """Go on without the present process: nothing runs, nothing is resident."""
        self._before = _Told(self._counters, load_times=self.load_times)
        self._now = _Told()

    @property
    def counters(self) -> dict[str, int]:
        """What only grows, by the names of ``EngineStats``."""
        return dict(zip(COUNTERS, self._counters, strict=True))

    @property
    def levels(self) -> dict[str, int]:
        """What goes up and down, by the names of ``EngineStats``."""
        return dict(zip(LEVELS, self._now.levels, strict=True))

    @property
    def num_running(self) -> int:
        """Requests in the batch, as last told."""
        return self._now.levels[LEVELS.index("num_running")]

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests on the device."""
        return self._now.resident

    @property
    def pace(self) -> Pace | None:
        """How fast the present process works, as last told."""
        return self._now.pace

    @property
    def load_times(self) -> DurationCounts:
        """How long loads took."""
        before, now = self._before.load_times, self._now.load_times
        if not sum(before.counts):
            return now
        return DurationCounts(
            tuple(map(sum, zip(before.counts, now.counts, strict=True))),
            before.sum_s + now.sum_s,
            now.latest or before.latest,
        )

    @property
    def _counters(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self._before.counters, self._now.counters, strict=True)))
