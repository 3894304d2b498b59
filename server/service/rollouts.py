"""Begins, shows and ends rollouts for callers, and looks at the running ones again and again.

A caller sees the rollouts of the adapters that exist for it. Event loop's thread only; what waits for the database, and
the judging, runs in threads.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from adapters.errors import AdapterError
from adapters.registry import AdapterRecord, Change, Registry, VersionRecord
from adapters.registry_records import aliased_version, check_key, check_ready, check_text, find_version, no_adapter
from adapters.scoring.plugins import live_figures, metrics_of
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.core.principal import Principal
from server.evaluation.rollouts.records import Plan, Rollout, State, Terms
from server.evaluation.rollouts.store import RolloutStore
from server.observability.metrics import Metrics
from server.service.rollout_gate import BY_HAND, RolloutGate, tell

_log = logging.getLogger(__name__)
MAX_REASON_CHARS = 1000
# Judging thousands of requests takes a while: no more than this share of one processor's time goes into it.
_MAX_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How rollouts are looked after.

    Attributes:
        look_s: Least seconds between two looks at the running rollouts.
        max_num_shadows: Most shadows that run at once.
        shadow_timeout_s: Longest time a shadow may take.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    look_s: float = 2.0
    max_num_shadows: int = 2
    shadow_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse to look without a pause, and shadows that could never end."""
        if self.look_s <= 0 or self.shadow_timeout_s <= 0 or self.max_num_shadows < 0:
            raise InvalidArgumentError(
                "rollouts.look_s and rollouts.shadow_timeout_s must be over 0, rollouts.max_num_shadows not below"
            )


class RolloutService:
    """The rollouts as callers see them.

    Args:
        store: The rollouts.
        registry: The adapters.
        gate: Decides.
        metrics: Where decisions are counted.
        look_s: Least seconds between two looks.
    """

    def __init__(
        self, store: RolloutStore, registry: Registry, gate: RolloutGate, metrics: Metrics, *, look_s: float
    ) -> None:
        """Keep the parts; :meth:`start` begins to look."""
        self._store = store
        self._registry = registry
        self._gate = gate
        self._metrics = metrics
        self._look_s = look_s
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look at the running rollouts."""
        self._looking = asyncio.create_task(self._look_again_and_again(), name="rollouts")

    async def stop(self) -> None:
        """End, when what runs now has ended."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def begin(
        self,
        principal: Principal,
        name: str,
        *,
        alias: str,
        candidate_version: int,
        terms: Terms,
        idempotency_key: str = "",
    ) -> Rollout:
        """Try a candidate against what an alias points at, and return the rollout.

        Raises:
            AdapterNotFoundError: If there is no such adapter for the caller, or it has no such alias or version.
            AdapterNotReadyError: If the candidate is not ready.
            InvalidArgumentError: If the alias points at the candidate already, or one is not scored by the metric.
            FailedPreconditionError: If the candidate cannot stand in the stable version's place, or a rollout of this
                alias runs.
            IdempotencyConflictError: If the key was used for another rollout.
            StoreError: If the database cannot be written.
        """
        _check_seen(principal, name)
        plan = _plan(self._registry.get(name), alias, candidate_version, terms)
        change = Change(principal.who, principal.origin, idempotency_key)
        rollout = await asyncio.to_thread(self._store.create, plan, change)
        start = rollout.decisions[0]
        self._metrics.rollout_decisions.labels(action=start.action).inc()
        tell(rollout, start)
        return rollout

    async def list(self, principal: Principal, name: str) -> tuple[Rollout, ...]:
        """Return the newest rollouts of an adapter, newest first, with their figures so far.

        Raises:
            AdapterNotFoundError: If there is no adapter of this name for the caller.
            StoreError: If the database cannot be read.
        """
        _check_seen(principal, name)
        self._registry.get(name)
        return await asyncio.to_thread(lambda: tuple(map(self._with_figures, self._store.list(name))))

    async def get(self, principal: Principal, name: str, rollout_id: str) -> Rollout:
        """Return a rollout with its figures so far.

        Raises:
            AdapterNotFoundError: If there is no adapter of this name for the caller.
            NotFoundError: If it has no such rollout.
            StoreError: If the database cannot be read.
        """
        _check_seen(principal, name)
        self._registry.get(name)
        return await asyncio.to_thread(lambda: self._with_figures(self._store.get(name, rollout_id)))

    async def promote(
        self, principal: Principal, name: str, rollout_id: str, *, reason: str = "", idempotency_key: str = ""
    ) -> Rollout:
        """Point the alias at the candidate, whatever the figures say, and return the rollout.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            InvalidArgumentError: If the reason is too long.
            InvalidAdapterError: If it cannot be kept.
            NotFoundError: If there is no such rollout for the caller.
            FailedPreconditionError: If it has ended otherwise, or the alias was moved meanwhile.
            StoreError: If the database cannot be written.
        """
        check_key(idempotency_key)  # and no more: the same decision again changes nothing, under any key
        change, reason = Change(principal.who, principal.origin), _checked(reason)
        rollout = await self.get(principal, name, rollout_id)
        return await asyncio.to_thread(self._gate.promote, rollout, change, reason)

    async def roll_back(
        self, principal: Principal, name: str, rollout_id: str, *, reason: str = "", idempotency_key: str = ""
    ) -> Rollout:
        """End a rollout with the alias where it is and return it.

        Raises:
            InvalidAdapterReferenceError: If the key is not well formed.
            InvalidArgumentError: If the reason is too long.
            InvalidAdapterError: If it cannot be kept.
            NotFoundError: If there is no such rollout for the caller.
            FailedPreconditionError: If it has ended otherwise, or is being promoted.
            StoreError: If the database cannot be written.
        """
        check_key(idempotency_key)  # and no more: the same decision again changes nothing, under any key
        change, reason = Change(principal.who, principal.origin), _checked(reason)
        rollout = await self.get(principal, name, rollout_id)
        return await asyncio.to_thread(self._gate.roll_back, rollout, change, reason)

    def _with_figures(self, rollout: Rollout) -> Rollout:
        if rollout.state is not State.RUNNING:
            return rollout
        judged = self._gate.judgement(rollout)
        return replace(rollout, arms=judged.arms)

    def _look(self) -> float:
        """Look once, and return the seconds of processor time it took."""
        began_s = time.thread_time()
        self._gate.look()
        return time.thread_time() - began_s

    async def _look_again_and_again(self) -> None:
        is_failing = False
        while True:
            took_s = 0.0
            try:
                took_s = await asyncio.to_thread(self._look)
            except Exception as error:  # a database that is away, or a mistake of ours: serving goes on
                if not is_failing:
                    known = isinstance(error, AdapterError)
                    _log.warning("looking at rollouts fails: %s", error, exc_info=None if known else error)
                is_failing = True
            else:
                is_failing = False
            await asyncio.sleep(max(self._look_s, took_s / _MAX_SHARE))


def _plan(adapter: AdapterRecord, alias: str, candidate_version: int, terms: Terms) -> Plan:
    stable = find_version(adapter, aliased_version(adapter, alias))
    candidate = check_ready(find_version(adapter, candidate_version))
    if stable.kind is not None and candidate.kind is not None and stable.kind.role is not candidate.kind.role:
        raise FailedPreconditionError(
            f"version {candidate.version} is a {candidate.kind} and cannot take the place of a {stable.kind}"
        )
    _check_metric(terms.metric, stable)
    _check_metric(terms.metric, candidate)
    return Plan(adapter.name, alias, stable.version, candidate.version, terms)


def _check_metric(metric: str, version: VersionRecord) -> None:
    """Refuse what would never be scored, and so never decided."""
    figures = live_figures(metrics_of(version.metrics, version.task))
    if metric not in figures:
        scored = f"is scored by {', '.join(figures)}" if figures else "has no score in percent"
        raise InvalidArgumentError(
            f"version {version.version} {scored}; a rollout by {metric} would never be decided", param="metric"
        )


def _checked(reason: str) -> str:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidArgumentError(f"reason has at most {MAX_REASON_CHARS} characters", param="reason")
    return check_text(reason, "reason") or BY_HAND


def _check_seen(principal: Principal, name: str) -> None:
    if not principal.sees(name):
        raise no_adapter(name)
