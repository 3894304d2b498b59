"""Rollouts in the registry's database, shared by all its servers; those that run are known in memory, too.

Each change of a rollout's state is one conditional statement together with the decision that is its reason, so of
several servers that would decide, one does, and a crash leaves neither without the other. Knows no aliases and no
figures. Methods may be called from any thread; those that do not say "from memory" wait for the database.
"""

import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace

import sqlalchemy as sa

from adapters.database import as_store_error, open_database
from adapters.errors import IdempotencyConflictError
from adapters.registry_records import Change, check_key
from server.core.errors import FailedPreconditionError, NotFoundError
from server.evaluation.rollouts.records import ROLLOUT_ID_PATTERN, Action, Arms, Decision, Plan, Rollout, State, Verdict
from server.evaluation.rollouts.routing import RouteTable, route_table
from server.evaluation.rollouts.rows import decision_row, plan_of, read_rollouts
from server.evaluation.rollouts.schema import COUNTER, DECISIONS, ROLLOUTS, SCRIPTS, VERSION_TABLE

_MAX_NUM_LISTED = 100
_MAX_NUM_RUNNING = 10_000
_KEPT_S = 24 * 3600.0


class RolloutStore:
    """The rollouts of a database.

    Args:
        url: The registry's database URL; the tables are made and migrated as needed.
        clock: Returns Unix time.

    Raises:
        StoreError: If the database cannot be used.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database, bring its schema up to date and read what runs."""
        self._clock = clock
        self._lock = threading.Lock()
        self._counter = -1
        self._running: tuple[Rollout, ...] = ()
        self._routes = RouteTable()
        self._reader, self._writer = open_database(url, SCRIPTS, VERSION_TABLE)
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database's connections; no other method may be called after."""
        self._reader.dispose()

    @property
    def running(self) -> tuple[Rollout, ...]:
        """The rollouts that run. From memory."""
        return self._running

    @property
    def routes(self) -> RouteTable:
        """Where requests go because of them. From memory."""
        return self._routes

    def refresh(self) -> None:
        """Look what other servers changed; nothing is read where nothing did.

        Raises:
            StoreError: If the database cannot be read; what is known stays.
        """
        with self._lock, as_store_error(), self._reader.begin() as connection:
            counter: int = connection.execute(sa.select(COUNTER.c.counter)).scalar_one()
            if counter != self._counter:
                is_running = ROLLOUTS.c.state == State.RUNNING
                self._running = read_rollouts(connection, is_running, limit=_MAX_NUM_RUNNING)
                self._routes = route_table(self._running)
                self._counter = counter

    def create(self, plan: Plan, change: Change) -> Rollout:
        """Begin a rollout and return it; the same plan under the same idempotency key again gives the first one.

        Raises:
            FailedPreconditionError: If a rollout of this alias runs.
            InvalidAdapterReferenceError: If the key is not well formed.
            IdempotencyConflictError: If the key was used for another plan.
            StoreError: If the database cannot be written.
        """
        key, now_s = check_key(change.idempotency_key), self._clock()
        rollout_id = f"ro_{uuid.uuid4().hex[:20]}"
        start = Decision(now_s, change.who, Action.START, "", {"plan": asdict(plan)})
        row = {
            "rollout_id": rollout_id,
            "adapter": plan.adapter,
            "alias": plan.alias,
            "plan": asdict(plan),
            "state": State.RUNNING,
            "verdict": Verdict.NO_DATA,
            "created_s": now_s,
            "ended_s": None,
            "promotion": None,
            "origin": "",
            "arms": {},
            "who": change.who,
            "idempotency_key": key,
        }
        with as_store_error(), self._writer.begin() as connection:
            _count_change(connection)
            known = _find_by_key(connection, plan, change.who, key, now_s - _KEPT_S) if key else None
            if known is None:
                _check_none_runs(connection, plan)
                connection.execute(sa.insert(ROLLOUTS).values(row))
                connection.execute(sa.insert(DECISIONS).values(decision_row(rollout_id, start)))
            rollout = read_rollouts(connection, ROLLOUTS.c.rollout_id == (known or rollout_id), limit=1)[0]
        self.refresh()
        return rollout

    def get(self, adapter: str, rollout_id: str) -> Rollout:
        """Return a rollout of an adapter with its decisions.

        Raises:
            NotFoundError: If the adapter has none of this id.
            StoreError: If the database cannot be read.
        """
        if not re.fullmatch(ROLLOUT_ID_PATTERN, rollout_id):
            raise _no_rollout()  # a caller's text may hold what a database cannot compare
        is_it = (ROLLOUTS.c.adapter == adapter, ROLLOUTS.c.rollout_id == rollout_id)
        with as_store_error(), self._reader.begin() as connection:
            found = read_rollouts(connection, *is_it, limit=1)
        if not found:
            raise _no_rollout()
        return found[0]

    def list(self, adapter: str) -> tuple[Rollout, ...]:
        """Return the newest rollouts of an adapter with their decisions, newest first.

        Raises:
            StoreError: If the database cannot be read.
        """
        with as_store_error(), self._reader.begin() as connection:
            return read_rollouts(connection, ROLLOUTS.c.adapter == adapter, limit=_MAX_NUM_LISTED)

    def note_verdict(self, rollout: Rollout, verdict: Verdict, decision: Decision) -> bool:
        """Note what the figures say now; return whether it was news.

        Raises:
            StoreError: If the database cannot be written.
        """
        is_news = ROLLOUTS.c.verdict == rollout.verdict
        return self._change(rollout.rollout_id, decision, is_news, verdict=verdict)

    def decide_promotion(self, rollout: Rollout, verdict: Verdict, decision: Decision, origin: str) -> bool:
        """Settle that a rollout is promoted, before the alias is moved; return whether it was still undecided.

        From then on nothing else can become of it, and whoever sees it may carry it out.

        Raises:
            StoreError: If the database cannot be written.
        """
        return self._change(rollout.rollout_id, decision, promotion=asdict(decision), origin=origin, verdict=verdict)

    def finish(self, rollout: Rollout, state: State, verdict: Verdict, arms: Arms, decision: Decision | None) -> bool:
        """End a rollout; return whether it was still running, and undecided unless its promotion is being carried out.

        Args:
            rollout: The rollout; with its promotion, if that is what ends it.
            state: How it ends.
            verdict: What the figures said last.
            arms: The figures.
            decision: Why; None where the promotion says it.

        Raises:
            StoreError: If the database cannot be written.
        """
        return self._change(
            rollout.rollout_id,
            decision,
            is_promotion=rollout.promotion is not None,
            state=state,
            verdict=verdict,
            ended_s=self._clock(),
            arms=asdict(arms),
        )

    def _change(
        self,
        rollout_id: str,
        decision: Decision | None,
        *which: sa.ColumnElement[bool],
        is_promotion: bool = False,
        **values: object,
    ) -> bool:
        is_open = (ROLLOUTS.c.rollout_id == rollout_id, ROLLOUTS.c.state == State.RUNNING)
        is_free = ROLLOUTS.c.promotion.is_not(None) if is_promotion else ROLLOUTS.c.promotion.is_(None)
        with as_store_error(), self._writer.begin() as connection:
            _count_change(connection)
            update = sa.update(ROLLOUTS).where(*is_open, is_free, *which).values(values)
            is_changed = connection.execute(update).rowcount == 1
            if is_changed and decision is not None:
                connection.execute(sa.insert(DECISIONS).values(decision_row(rollout_id, decision)))
        self.refresh()
        return is_changed


def _no_rollout() -> NotFoundError:
    return NotFoundError("the adapter has no rollout of this id", param="rollout_id")


def _count_change(connection: sa.Connection) -> None:
    """Raise the change counter, which keeps other changes out until the transaction ends."""
    connection.execute(sa.update(COUNTER).values(counter=COUNTER.c.counter + 1))


def _check_none_runs(connection: sa.Connection, plan: Plan) -> None:
    is_same = (ROLLOUTS.c.adapter == plan.adapter, ROLLOUTS.c.alias == plan.alias)
    running = sa.select(ROLLOUTS.c.rollout_id).where(*is_same, ROLLOUTS.c.state == State.RUNNING)
    rollout_id = connection.execute(running).scalar()
    if rollout_id is not None:
        raise FailedPreconditionError(
            f"rollout {rollout_id} of {plan.adapter}@{plan.alias} is running; promote it or roll it back first"
        )


def _find_by_key(connection: sa.Connection, plan: Plan, who: str, key: str, since_s: float) -> str | None:
    mine = (ROLLOUTS.c.who == who, ROLLOUTS.c.idempotency_key == key, ROLLOUTS.c.created_s >= since_s)
    found = connection.execute(sa.select(ROLLOUTS.c.rollout_id, ROLLOUTS.c.plan).where(*mine)).mappings().first()
    if found is None:
        return None
    known = plan_of(found["plan"])
    # The alias may have moved since the first call: what it points at is no choice of the caller's.
    if replace(known, stable_version=plan.stable_version) != plan:
        raise IdempotencyConflictError("this idempotency key was used for another change; take a new one")
    rollout_id: str = found["rollout_id"]
    return rollout_id
