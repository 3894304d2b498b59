"""Samples of durations summed up through HDR histograms: three significant digits, whatever the size of the sample.

A percentile is the value at the nearest rank (``percent / 100 * count``, rounded), within 0.1 %: nothing is
interpolated. Mean and maximum are exact. Histograms of several runs or processes can be added. Knows no records.

Source:
    HdrHistogram, http://hdrhistogram.org; the encoded form is its compressed V2, which its other implementations read.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}

_NS_PER_MS = 1e6
# Microseconds would do for latencies, but gaps between tokens and client lag can be shorter.
_UNIT_NS = 100
_HIGHEST = 86_400 * 10**9 // _UNIT_NS
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Distribution:
    """A sample summed up, in milliseconds.

    Attributes:
        count: Size of the sample.
        mean: Exact.
        p50: Half the sample is not above it.
        p90: 90 of a hundred.
        p99: 99 of a hundred.
        p999: 999 of a thousand.
        max: Exact.
        hdr: The histogram, encoded, a unit being 100 ns; empty unless it was asked for.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    hdr: str = ""


def distribution(values_ms: Iterable[float], *, encode: bool = False) -> Distribution | None:
    """Sum up a sample; None if it is empty.

    Args:
        values_ms: Milliseconds, none of them negative.
        encode: Keep the histogram, too.
    """
    histogram = HdrHistogram(1, _HIGHEST, _DIGITS)
    count, total, highest = 0, 0.0, 0.0
    for value_ms in values_ms:
        histogram.record_value(min(_HIGHEST, max(1, round(value_ms * _NS_PER_MS / _UNIT_NS))))
        count, total, highest = count + 1, total + value_ms, max(highest, value_ms)
    if not count:
        return None
    # All at once: each call goes over the buckets from the lowest.
    found = histogram.get_percentile_to_value_dict(list(PERCENTILES.values()))
    # A bucket reaches beyond the values in it.
    figures = {name: min(found[percent] * _UNIT_NS / _NS_PER_MS, highest) for name, percent in PERCENTILES.items()}
    encoded = histogram.encode().decode("ascii") if encode else ""
    return Distribution(count, total / count, **figures, max=highest, hdr=encoded)
