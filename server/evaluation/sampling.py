"""Which ended requests are kept, by a share for each adapter. The same request is decided alike by every server."""

import hashlib
from collections.abc import Mapping

from server.evaluation.outcome import Outcome

_NUM_BYTES = 8
_NUM_VALUES = float(256**_NUM_BYTES)


class Sampler:
    """Decides by a hash of the request id, so that no state is kept. Any thread.

    Args:
        rate: Share of requests kept, from 0 to 1.
        rates: Adapter name, or ``base`` → share, where it is another one.
    """

    def __init__(self, rate: float, rates: Mapping[str, float]) -> None:
        """Keep the shares."""
        self._rate = rate
        self._rates = dict(rates)

    def takes(self, outcome: Outcome) -> bool:
        """Return whether a request is kept; one that a rollout routed always is."""
        if outcome.rollout is not None:
            return True
        names = [part.partition(":")[0] for part in outcome.adapters.split("+")]
        rate = max(self._rates.get(name, self._rate) for name in names)
        digest = hashlib.sha256(outcome.request_id.encode()).digest()
        return int.from_bytes(digest[:_NUM_BYTES], "big") < rate * _NUM_VALUES
