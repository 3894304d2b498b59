"""How many rows of floods may run while a light tenant is about, so that its steps stay about as short as alone.

To give everybody a seat in turn is not enough: beside a full batch a step takes several times as long as with a row or
two, and so does every answer. A flood is a tenant with more rows in the engine, waiting ones included, than its share
of the seats, which is one row at least; all others are light. While a light one is about, which it is for
:data:`LINGER_S` after its last row, all floods together start no more rows than keep ``max_rows`` of theirs running.
Where there are floods only, or one tenant only, full batches are what serves them all best, and nothing is limited.

Plain Python: no torch, no asyncio, no clock of its own. Step thread only.
"""

from collections.abc import Mapping

LINGER_S = 3.0
"""How long a light tenant is expected back; rows that start without it would be in its way when it comes."""

_NOBODY: frozenset[str] = frozenset()


class FloodLimit:
    """The limit, and to whom it applies.

    Args:
        num_seats: Most rows of all tenants.
        max_rows: Most rows of floods.
    """

    def __init__(self, num_seats: int, max_rows: int) -> None:
        self._num_seats, self._max_rows = num_seats, max_rows
        self._seen_s: dict[str, float] = {}
        self._light_s: dict[str, float] = {}
        self._floods = _NOBODY
        self._num_free = 0

    def look(self, num_waiting: Mapping[str, int], num_started: Mapping[str, int], now_s: float) -> None:
        """See who is about; once a step, before rows start.

        Args:
            num_waiting: Rows that wait, by tenant.
            num_started: Rows that run, by tenant; the same tenants.
            now_s: Time of the step.
        """
        self._seen_s = _still_about(self._seen_s | dict.fromkeys(num_waiting, now_s), now_s)
        share = max(1, self._num_seats // max(1, len(self._seen_s)))
        floods = frozenset(name for name in num_waiting if num_waiting[name] + num_started[name] > share)
        light = self._light_s | dict.fromkeys(num_waiting, now_s)
        self._light_s = _still_about({name: at_s for name, at_s in light.items() if name not in floods}, now_s)
        self._floods = floods if self._light_s else _NOBODY
        self._num_free = self._max_rows - sum(num_started[name] for name in self._floods)

    @property
    def held(self) -> frozenset[str]:
        """Tenants whose rows may not start now."""
        return self._floods if self._num_free <= 0 else _NOBODY

    def start(self, tenant: str) -> None:
        """Count a row that starts."""
        self._num_free -= tenant in self._floods

    def num_startable(self, num_waiting: Mapping[str, int]) -> int:
        """Return how many of the rows that wait may start, as far as it is for this to say."""
        num_of_floods = sum(num_waiting[name] for name in self._floods)
        return sum(num_waiting.values()) - num_of_floods + min(num_of_floods, max(0, self._num_free))


def _still_about(seen_s: Mapping[str, float], now_s: float) -> dict[str, float]:
    return {name: at_s for name, at_s in seen_s.items() if now_s - at_s <= LINGER_S}
