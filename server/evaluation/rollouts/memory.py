"""The ended requests of rollouts in this server's memory: enough for one server, and forgotten when it ends.

Bounded: the newest rollouts, and of each the oldest requests, as many as a rollout may take. Any thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from server.evaluation.outcome import Outcome, RolloutOutcome
from server.evaluation.rollouts.records import MAX_NUM_REQUESTS

_MAX_NUM_ROLLOUTS = 64
Scoring = Future[Mapping[str, float]]


class MemoryOutcomes:
    """Implements :class:`server.evaluation.rollouts.judge.RolloutOutcomes`."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._by_rollout: OrderedDict[str, list[RolloutOutcome]] = OrderedDict()

    def add(self, outcome: Outcome, scoring: Scoring | None) -> None:
        """Keep an ended request, and its scores once they are there; one outside of a rollout is not kept.

        Args:
            outcome: The request.
            scoring: Its scores to come, or None.
        """
        if outcome.rollout is None:
            return
        kept = RolloutOutcome(outcome.rollout.arm, outcome.code, outcome.e2e_s, {}, outcome.finished_s)
        with self._lock:
            outcomes = self._by_rollout.setdefault(outcome.rollout.rollout_id, [])
            if len(outcomes) >= MAX_NUM_REQUESTS:
                return
            place = len(outcomes)
            outcomes.append(kept)
            while len(self._by_rollout) > _MAX_NUM_ROLLOUTS:
                self._by_rollout.popitem(last=False)
        if scoring is not None:
            scoring.add_done_callback(partial(self._scored, outcome.rollout.rollout_id, place))

    def rollout_outcomes(self, rollout_id: str) -> Sequence[RolloutOutcome]:
        """Return the ended requests of a rollout, oldest first."""
        with self._lock:
            return tuple(self._by_rollout.get(rollout_id, ()))

    def _scored(self, rollout_id: str, place: int, scoring: Scoring) -> None:
        if scoring.cancelled() or scoring.exception() is not None:
            return
        with self._lock:
            outcomes = self._by_rollout.get(rollout_id)
            if outcomes is not None:
                was = outcomes[place]
                outcomes[place] = RolloutOutcome(was.arm, was.code, was.e2e_s, scoring.result(), was.finished_s)
