"""How much a key may ask for: requests a minute and requests at once, counted in this server's memory.

One bucket a key holds as many requests as it may make a minute, full at first, and fills up evenly: a burst may use all
of it at once, and in the long run the limit holds. Both front ends count on the same buckets. Knows no protocol.
Event loop's thread only.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.access.api_key import ApiKey
from server.core.errors import ResourceExhaustedError

_MINUTE_S = 60.0
# Nobody knows when a running request ends; most do within this.
_BUSY_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class _Usage:
    """Of one key.

    Attributes:
        num_left: Requests left in the bucket.
        filled_s: Monotonic time the bucket was last filled up.
        num_running: Requests admitted and not ended.
    """

    num_left: float
    filled_s: float
    num_running: int = 0


class Quotas:
    """What every key has used.

    Args:
        clock: Returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing used."""
        self._clock = clock
        self._used: dict[str, _Usage] = {}

    @contextmanager
    def admit(self, key: ApiKey, count: int = 1) -> Iterator[None]:
        """Count requests of a key until the block ends: all of them, or none, and what is refused uses nothing up.

        Raises:
            ResourceExhaustedError: If the key has too many at once, or made too many a short while ago.
        """
        if not count or (not key.max_requests_per_minute and not key.max_concurrent):
            yield
            return
        if any(0 < limit < count for limit in (key.max_requests_per_minute, key.max_concurrent)):
            raise ResourceExhaustedError("one call asks for more requests than its key may ever make at once")
        usage = self._usage(key)
        if key.max_concurrent and usage.num_running + count > key.max_concurrent:
            raise ResourceExhaustedError(
                f"this key may have {key.max_concurrent} requests at once; let one end first",
                retry_after_s=_BUSY_RETRY_AFTER_S,
            )
        if key.max_requests_per_minute:
            _take(usage, count, key.max_requests_per_minute)
        usage.num_running += count
        try:
            yield
        finally:
            usage.num_running -= count

    def _usage(self, key: ApiKey) -> _Usage:
        now_s, size = self._clock(), float(key.max_requests_per_minute)
        usage = self._used.get(key.key_id)
        if usage is None:
            usage = self._used[key.key_id] = _Usage(size, now_s)
        usage.num_left = min(size, usage.num_left + (now_s - usage.filled_s) * size / _MINUTE_S)
        usage.filled_s = now_s
        return usage


def _take(usage: _Usage, count: int, max_requests_per_minute: int) -> None:
    # Waiting for exactly as long as told must be enough, whatever the rounding.
    if usage.num_left < count - 1e-9:
        retry_after_s = (count - usage.num_left) * _MINUTE_S / max_requests_per_minute
        raise ResourceExhaustedError(
            f"this key may make {max_requests_per_minute} requests a minute; try again in {retry_after_s:.1f} s",
            retry_after_s=retry_after_s,
        )
    usage.num_left -= count
