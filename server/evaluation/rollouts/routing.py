"""Which version a request of an alias gets while a rollout runs: by a hash, so nothing is remembered of any caller.

The hash is salted with the rollout's id: the same key stays on its side of one rollout, and is dealt anew in the next.
A table never changes; another one takes its place. Any thread, without waiting.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from server.evaluation.outcome import Arm, RolloutPart
from server.evaluation.rollouts.records import Mode, Rollout

_NUM_BUCKETS = 1 << 32


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        part: What is noted of it.
        version: The version that answers.
    """

    part: RolloutPart
    version: int


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The rollouts that run, by adapter and alias."""

    _by_alias: Mapping[tuple[str, str], Rollout] = field(default_factory=dict)
    _by_id: Mapping[str, Rollout] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._by_alias)

    def route(self, adapter: str, alias: str, version: int, key: str) -> Route | None:
        """Return where a request goes, or None if it takes no part in a rollout.

        Args:
            adapter: The adapter it names.
            alias: The alias it names, or means by naming none.
            version: What the alias points at: where that is not the rollout's stable version, it was moved meanwhile.
            key: What it is dealt by.
        """
        rollout = self._by_alias.get((adapter, alias))
        if rollout is None or version != rollout.plan.stable_version:
            return None
        is_drawn = share_of(rollout.rollout_id, key) < rollout.plan.terms.percent / 100
        if rollout.plan.terms.mode is Mode.SHADOW:
            return Route(RolloutPart(rollout.rollout_id, Arm.STABLE), version) if is_drawn else None
        arm = Arm.CANDIDATE if is_drawn else Arm.STABLE
        return Route(RolloutPart(rollout.rollout_id, arm), rollout.plan.candidate_version if is_drawn else version)

    def shadow_version(self, rollout_id: str) -> int | None:
        """Return the version that is to run beside a rollout's requests, or None if none is."""
        rollout = self._by_id.get(rollout_id)
        return (
            rollout.plan.candidate_version if rollout is not None and rollout.plan.terms.mode is Mode.SHADOW else None
        )


def route_table(rollouts: Iterable[Rollout]) -> RouteTable:
    """Return the table of rollouts that run; one whose promotion is under way routes no more."""
    running = [rollout for rollout in rollouts if rollout.promotion is None]
    return RouteTable(
        {(rollout.plan.adapter, rollout.plan.alias): rollout for rollout in running},
        {rollout.rollout_id: rollout for rollout in running},
    )


def share_of(rollout_id: str, key: str) -> float:
    """Return where a key lies, from 0 to below 1."""
    # A caller's key may be no valid Unicode, which JSON can carry.
    salted = f"{rollout_id}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(salted, digest_size=4).digest()) / _NUM_BUCKETS
