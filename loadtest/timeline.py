"""What went on beside the requests of a run: changes of adapters, and the server's own counters. Plain records.

Times are seconds from the start of the measured part, as those of requests are.
"""

from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """What an operator does to an adapter."""

    UPLOAD = "upload"
    PROMOTE = "promote"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of an adapter.

    Attributes:
        change: What was done.
        name: To which adapter.
        version: To which version of it; 0 if an upload failed.
        started_s: When it was asked for.
        ended_s: When the server had done it, or refused.
        error_code: Why it failed; empty if it did not.
    """

    change: Change
    name: str
    version: int
    started_s: float
    ended_s: float
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """The server's counters at one time.

    Attributes:
        at_s: When.
        num_loads: Adapters brought to the device since the server started.
        num_evictions: Adapters that had to give up their place there.
    """

    at_s: float
    num_loads: int
    num_evictions: int
