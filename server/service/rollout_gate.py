"""Acts on what the figures of running rollouts say: promotes, holds, rolls back or ends, and writes down why.

Every server of a registry runs one; the database sees to it that each decision is made once. A promotion is settled
first and carried out then, under an idempotency key that is the rollout's id: a server that dies between the two leaves
it to the others, and none moves the alias twice. Knows no callers. Methods may be called from any thread, and all but
the constructor wait for the database.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from adapters.errors import AdapterError, AdapterNotFoundError, StoreError
from adapters.registry import Change, Registry, VersionState
from adapters.registry_records import find_version
from server.core.errors import FailedPreconditionError
from server.evaluation.rollouts.judge import Judgement, RolloutOutcomes, judge
from server.evaluation.rollouts.records import Action, Decision, Rollout, State, Verdict
from server.evaluation.rollouts.store import RolloutStore
from server.observability.metrics import Metrics

_log = logging.getLogger(__name__)
SERVER = "server"
BY_HAND = "by hand"


class RolloutGate:
    """Decides.

    Args:
        store: The rollouts.
        registry: Where aliases are moved.
        outcomes: The rollouts' ended requests.
        metrics: Where decisions are counted.
        clock: Returns Unix time.
    """

    def __init__(
        self,
        store: RolloutStore,
        registry: Registry,
        outcomes: RolloutOutcomes,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the parts."""
        self._store = store
        self._registry = registry
        self._outcomes = outcomes
        self._metrics = metrics
        self._clock = clock

    def look(self) -> None:
        """Judge every running rollout and act.

        Raises:
            StoreError: If the database cannot be used.
        """
        for rollout in self._store.running:
            if rollout.promotion is not None:
                self._carry_out(rollout)
            elif gone := self._gone(rollout):
                self._end(rollout, self.judgement(rollout), gone)
            else:
                self._decide(rollout, self.judgement(rollout))

    def judgement(self, rollout: Rollout) -> Judgement:
        """Return what the requests of a rollout say so far.

        Raises:
            StoreError: If they cannot be read.
        """
        outcomes = self._outcomes.rollout_outcomes(rollout.rollout_id)
        return judge(rollout.plan, outcomes, rollout.verdict)

    def promote(self, rollout: Rollout, change: Change, reason: str = BY_HAND) -> Rollout:
        """Point the alias at the candidate, by hand, and return the rollout; one that is promoted stays as it is.

        Raises:
            FailedPreconditionError: If it has ended otherwise, or the alias was moved meanwhile.
            StoreError: If the database cannot be written.
        """
        if rollout.state is State.RUNNING and rollout.promotion is None:
            self._promote(rollout, self.judgement(rollout), change.who, reason, change.origin)
        ended = self._carried_out(rollout)
        if ended.state is not State.PROMOTED:
            raise FailedPreconditionError(_why_not(ended))
        return ended

    def roll_back(self, rollout: Rollout, change: Change, reason: str = BY_HAND) -> Rollout:
        """End a rollout with the alias where it is, by hand, and return it; one that is rolled back stays as it is.

        Raises:
            FailedPreconditionError: If it has ended otherwise, or is being promoted.
            StoreError: If the database cannot be written.
        """
        if rollout.state is State.RUNNING and rollout.promotion is None:
            self._finish(rollout, self.judgement(rollout), State.ROLLED_BACK, change.who, reason)
        ended = self._carried_out(rollout)
        if ended.state is not State.ROLLED_BACK:
            raise FailedPreconditionError(_why_not(ended))
        return ended

    def _decide(self, rollout: Rollout, judged: Judgement) -> None:
        is_automatic = rollout.plan.terms.automatic
        if is_automatic and judged.verdict is Verdict.BETTER:
            self._promote(rollout, judged, SERVER, judged.reason)
            self._carried_out(rollout)
        elif is_automatic and judged.verdict in (Verdict.WORSE, Verdict.GUARD_RAIL):
            self._finish(rollout, judged, State.ROLLED_BACK, SERVER, judged.reason)
        elif judged.num_requests >= rollout.plan.terms.max_num_requests:
            self._end(rollout, judged, f"{judged.num_requests} requests have ended, and no decision was made")
        elif judged.verdict is not rollout.verdict:
            decision = self._decision(rollout, judged, SERVER, Action.HOLD, judged.reason)
            if self._store.note_verdict(rollout, judged.verdict, decision):
                self._tell(rollout, decision)

    def _promote(self, rollout: Rollout, judged: Judgement, by: str, reason: str, origin: str = "") -> None:
        decision = self._decision(rollout, judged, by, Action.PROMOTE, reason)
        if self._store.decide_promotion(rollout, judged.verdict, decision, origin):
            self._tell(rollout, decision)

    def _finish(self, rollout: Rollout, judged: Judgement, state: State, by: str, reason: str) -> None:
        action = Action.ROLL_BACK if state is State.ROLLED_BACK else Action.END
        decision = self._decision(rollout, judged, by, action, reason)
        if self._store.finish(rollout, state, judged.verdict, judged.arms, decision):
            self._tell(rollout, decision)

    def _end(self, rollout: Rollout, judged: Judgement, reason: str) -> None:
        self._finish(rollout, judged, State.ENDED, SERVER, reason)

    def _carried_out(self, rollout: Rollout) -> Rollout:
        """Return a rollout as it is now; a promotion that was settled is carried out first."""
        now = self._store.get(rollout.plan.adapter, rollout.rollout_id)
        if now.state is State.RUNNING and now.promotion is not None:
            self._carry_out(now)
            now = self._store.get(rollout.plan.adapter, rollout.rollout_id)
        return now

    def _carry_out(self, rollout: Rollout) -> None:
        """Move the alias, if it still is where it was, and end the rollout."""
        plan, promotion = rollout.plan, rollout.promotion
        assert promotion is not None
        judged = self.judgement(rollout)
        change = Change(promotion.by, rollout.origin, f"rollout:{rollout.rollout_id}")
        try:
            record = self._registry.set_alias(
                plan.adapter, plan.alias, plan.candidate_version, change, expected=plan.stable_version
            )
            pointed = record.aliases.get(plan.alias)
        except StoreError:
            raise
        except AdapterError as error:
            self._end(rollout, judged, f"the alias cannot be moved: {error.message}")
            return
        if pointed == plan.candidate_version:
            self._store.finish(rollout, State.PROMOTED, rollout.verdict, judged.arms, None)
        else:
            self._end(rollout, judged, _moved(rollout, pointed))

    def _gone(self, rollout: Rollout) -> str:
        """Return why a rollout has become void, or nothing."""
        plan = rollout.plan
        try:
            record = self._registry.get(plan.adapter)
            candidate = find_version(record, plan.candidate_version)
        except AdapterNotFoundError as error:
            return error.message
        pointed = record.aliases.get(plan.alias)
        if pointed != plan.stable_version:
            return _moved(rollout, pointed)
        return "" if candidate.state is VersionState.READY else f"the candidate is {candidate.state}"

    def _decision(self, rollout: Rollout, judged: Judgement, by: str, action: Action, reason: str) -> Decision:
        data: dict[str, object] = {
            "verdict": judged.verdict,
            "finding": judged.reason,
            "arms": asdict(judged.arms),
            "stable_version": rollout.plan.stable_version,
            "candidate_version": rollout.plan.candidate_version,
        }
        return Decision(self._clock(), by, action, reason, data)

    def _tell(self, rollout: Rollout, decision: Decision) -> None:
        self._metrics.rollout_decisions.labels(action=decision.action).inc()
        tell(rollout, decision)


def tell(rollout: Rollout, decision: Decision) -> None:
    """Log a decision with its data."""
    plan = rollout.plan
    named: Mapping[str, object] = {"rollout_id": rollout.rollout_id, "adapter": f"{plan.adapter}@{plan.alias}"}
    _log.info("rollout decision: %s", decision.action, extra={**named, "decision": asdict(decision)})


def _moved(rollout: Rollout, pointed: int | None) -> str:
    alias = f"{rollout.plan.adapter}@{rollout.plan.alias}"
    return (
        f"{alias} was removed meanwhile" if pointed is None else f"{alias} was pointed at version {pointed} meanwhile"
    )


def _why_not(rollout: Rollout) -> str:
    if rollout.state is State.RUNNING:
        return "the rollout is being promoted"
    reason = rollout.decisions[-1].reason if rollout.decisions else ""
    return f"the rollout is {rollout.state.replace('_', ' ')}" + (f": {reason}" if reason else "")
