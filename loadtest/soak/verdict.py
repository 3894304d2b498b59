"""What a soak says of a server: each figure's trend, and whether requests and changes of adapters went well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from loadtest.soak.processes import ProcessSample
from loadtest.soak.run import Ended, Soak
from loadtest.soak.steadiness import Limit, Trend, trend

MIB = 1 << 20
LIMITS: Mapping[str, Limit] = {
    "resident memory": Limit(share=0.05, amount=16.0),
    "file handles": Limit(share=0.05, amount=16.0),
    # Pools start their threads as works coincide: four for uploads, four for fetches, six for all else.
    "threads": Limit(share=0.0, amount=8.0),
    "e2e p50": Limit(share=0.25, amount=20.0),
    "e2e p90": Limit(share=0.5, amount=50.0),
}
"""How much each figure may grow over the last two thirds; memory in MiB, latencies in ms."""
RULE = (
    "Over the last two thirds of the run, Sen's slope times their length is at most "
    + ", ".join(
        f"{limit.share:.0%} or {limit.amount:g} for {title}" if limit.share else f"{limit.amount:g} for {title}"
        for title, limit in LIMITS.items()
    )
    + "; at most 1% of requests and of changes fail."
)
MOST_FAILED = 0.01
_NUM_WINDOWS, _LEAST_WINDOW_S, _LEAST_IN_WINDOW = 60, 2.0, 5


@dataclass(frozen=True, slots=True)
class Window:
    """Latency in a part of the run.

    Attributes:
        at_s: Its middle.
        p50_ms: Median e2e latency of requests that completed in it.
        p90_ms: Their 90th percentile.
    """

    at_s: float
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen, and whether it is good.

    Attributes:
        trends: Of each figure.
        num_requests: Requests that ended.
        num_failed: Those that did not complete.
        errors: How many requests ended with each error code.
        changes: How many changes of adapters there were, by kind.
        num_changes_failed: Those that were refused.
        num_loads: Adapters brought to the device meanwhile; None if the server did not tell.
        num_evictions: Adapters that gave up their place there; None likewise.
        duration_s: From the first look at the processes to the last.
        faults: Why the server did not pass, a sentence each; empty if it did.
    """

    trends: tuple[Trend, ...]
    num_requests: int
    num_failed: int
    errors: Mapping[str, int]
    changes: Mapping[str, int]
    num_changes_failed: int
    num_loads: int | None
    num_evictions: int | None
    duration_s: float
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the server stayed as it was."""
        return not self.faults

    def sentence(self) -> str:
        """Tell it."""
        if self.passed:
            num_changes = sum(self.changes.values())
            return (
                f"Flat over {self.duration_s:.0f} s: {self.num_requests} requests, {num_changes} changes of adapters."
            )
        return f"Not flat: {'; '.join(self.faults)}."

    def as_json(self) -> dict[str, object]:
        """Return it as plain JSON values."""
        return {"passed": self.passed, "rule": RULE, **asdict(self)}


def verdict_of(soak: Soak) -> Verdict:
    """Judge a soak, also one that was broken off."""
    samples, ended = soak.samples, soak.ended
    trends = trends_of(samples, windows_of(ended))
    events = [event for recording in soak.recordings.values() for event in recording.events]
    readings = [reading for recording in soak.recordings.values() for reading in recording.readings]
    num_failed = sum(each.e2e_ms is None for each in ended)
    num_changes_failed = sum(bool(event.error_code) for event in events)
    return Verdict(
        trends=trends,
        num_requests=len(ended),
        num_failed=num_failed,
        errors=dict(sorted(Counter(each.error_code for each in ended if each.error_code).items())),
        changes=dict(sorted(Counter(event.change.value for event in events).items())),
        num_changes_failed=num_changes_failed,
        num_loads=readings[-1].num_loads - readings[0].num_loads if readings else None,
        num_evictions=readings[-1].num_evictions - readings[0].num_evictions if readings else None,
        duration_s=samples[-1].at_s - samples[0].at_s if samples else 0.0,
        faults=(
            *(_fault(each) for each in trends if not each.is_flat),
            *_failures("requests", num_failed, len(ended)),
            *_failures("changes of adapters", num_changes_failed, max(1, len(events))),
        ),
    )


def trends_of(samples: Sequence[ProcessSample], windows: Sequence[Window]) -> tuple[Trend, ...]:
    """Return the trend of each figure."""
    looked_s = [sample.at_s for sample in samples]
    middles_s = [window.at_s for window in windows]
    figures = {
        "resident memory": ("MiB", looked_s, [sample.rss_bytes / MIB for sample in samples]),
        "file handles": ("", looked_s, [float(sample.num_fds) for sample in samples]),
        "threads": ("", looked_s, [float(sample.num_threads) for sample in samples]),
        "e2e p50": ("ms", middles_s, [window.p50_ms for window in windows]),
        "e2e p90": ("ms", middles_s, [window.p90_ms for window in windows]),
    }
    return tuple(trend(title, unit, times, values, LIMITS[title]) for title, (unit, times, values) in figures.items())


def windows_of(ended: Sequence[Ended]) -> list[Window]:
    """Return latency over time: a sixtieth of the run each, those without enough requests left out."""
    done = [(each.at_s, each.e2e_ms) for each in ended if each.e2e_ms is not None]
    if not done:
        return []
    window_s = max(_LEAST_WINDOW_S, max(at_s for at_s, _ in done) / _NUM_WINDOWS)
    by_window: dict[int, list[float]] = {}
    for at_s, e2e_ms in done:
        by_window.setdefault(int(at_s // window_s), []).append(e2e_ms)
    return [
        Window((number + 0.5) * window_s, *map(float, np.percentile(latencies, [50, 90])))
        for number, latencies in sorted(by_window.items())
        if len(latencies) >= _LEAST_IN_WINDOW
    ]


def _fault(found: Trend) -> str:
    if not found.growth:
        return f"{found.title}: too few samples to say ({found.num_samples})"
    unit = f" {found.unit}" if found.unit else ""
    return (
        f"{found.title} grew by {found.growth:.1f}{unit} (median {found.median:.1f}, at most {found.most_growth:.1f})"
    )


def _failures(what: str, num_failed: int, num_all: int) -> tuple[str, ...]:
    if not num_all:
        return (f"no {what}",)
    if num_failed <= MOST_FAILED * num_all:
        return ()
    return (f"{num_failed} of {num_all} {what} failed",)
