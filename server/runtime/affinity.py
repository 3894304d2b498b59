"""Which replica a request goes to, so that each adapter is resident on few of them. Plain Python: knows no Ray.

Every adapter ranks the replicas by a hash of its own (rendezvous hashing): those who choose need not talk to each
other, and a replica that comes or goes moves only the adapters that were or will be its own. A replica that has more
than its share of the load is passed over for the next in the adapter's ranking, always the same one, so that a hot
adapter becomes resident on a second replica and not on all.

Source:
    Rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    Bounded loads: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", arXiv:1608.01350.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from server.core.errors import InvalidArgumentError

_NUM_CHOICES = 2


@dataclass(frozen=True, slots=True)
class Spill:
    """When a replica is passed over.

    Attributes:
        least: Requests a replica may have whatever the others have: what it computes without letting any wait.
        factor: How many times the mean load it may have beyond that; above 1.
    """

    least: int = 8
    factor: float = 1.25

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InvalidArgumentError: If one is out of range.
        """
        if self.least < 1 or self.factor <= 1:
            raise InvalidArgumentError("a replica must be allowed one request, and more than the mean load")

    def bound(self, loads: Sequence[int]) -> int:
        """Return the load at which a replica is passed over; not all can have reached it.

        While one replica could start on a request at once, no other may let it wait.
        """
        if min(loads) < self.least:
            return self.least
        return max(self.least, math.ceil(self.factor * (sum(loads) + 1) / len(loads)))


def adapter_key(references: Sequence[str]) -> str:
    """Return the word that decides where a request goes: the name of the first adapter, empty for the base.

    Versions and aliases of a name share it: who chooses has no registry to resolve them, and a rollout's two versions
    are wanted on the same replica anyway.
    """
    if not references:
        return ""
    return references[0].partition("@")[0].partition(":")[0]


def ranked(key: str, replicas: Sequence[str]) -> list[str]:
    """Return the replicas in the key's own order."""
    return sorted(replicas, key=lambda replica: _weight(key, replica), reverse=True)


def choose(key: str, loads: Mapping[str, int], spill: Spill, draw: random.Random) -> list[str]:
    """Return the replicas in the order in which they are to be asked.

    Args:
        key: From :func:`adapter_key`; without one, two replicas are drawn and the less loaded is taken.
        loads: Requests that each replica has, as far as is known.
        spill: When a replica is passed over.
        draw: For requests without a key.
    """
    if not loads:
        return []
    if not key:
        drawn = draw.sample(sorted(loads), min(_NUM_CHOICES, len(loads)))
        return sorted(drawn, key=loads.__getitem__)
    bound = spill.bound(list(loads.values()))
    order = ranked(key, list(loads))
    return sorted(order, key=lambda replica: loads[replica] >= bound)


def _weight(key: str, replica: str) -> bytes:
    # The key is as the caller wrote it; whether it names an adapter is for the replica to say.
    return blake2b(f"{key}\0{replica}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
