"""Figures of all adapter combinations, read from the store when somebody asks. Event loop's thread only.

One reading at a time, in a thread of its own; a dear one is handed out again for a while, so that whoever asks all the
time takes no more than a twentieth of a core.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from adapters.database import as_store_error
from server.evaluation.figures import AdapterEvaluation, Examined, Period, Totals, evaluate
from server.evaluation.outcome import OK
from server.evaluation.schema import REQUESTS, SCORES
from server.evaluation.store import EvaluationStore

_CHEAP_S = 0.1
_NUM_TIMES_AS_LONG = 20
_MAX_NUM_KEPT = 64


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """What is asked for.

    Attributes:
        adapter: A name, ``base``, or a combination as ``name:version``; empty for all.
        window_s: Length of a window.
        num_windows: How many, up to now.
    """

    adapter: str = ""
    window_s: float = 3600.0
    num_windows: int = 24


@dataclass(frozen=True, slots=True)
class _Made:
    evaluations: tuple[AdapterEvaluation, ...]
    good_until_s: float


class Reports:
    """Makes figures.

    Args:
        store: Where requests are.
        max_num_labels: Most combinations told of, those with the newest requests.
        max_num_examined: Most requests of a combination that are looked at, the newest ones.
        clock: Returns Unix time.
    """

    def __init__(
        self,
        store: EvaluationStore,
        *,
        max_num_labels: int,
        max_num_examined: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read nothing yet."""
        self._reader = store.reader
        self._max_num_labels = max_num_labels
        self._max_num_examined = max_num_examined
        self._clock = clock
        self._made: dict[ReportQuery, _Made] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evaluation-reports")

    async def evaluations(self, query: ReportQuery) -> tuple[AdapterEvaluation, ...]:
        """Return the figures of each combination, by label.

        Raises:
            StoreError: If the database cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._evaluations, query))

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _evaluations(self, query: ReportQuery) -> tuple[AdapterEvaluation, ...]:
        made = self._made.get(query)
        if made is not None and time.monotonic() < made.good_until_s:
            return made.evaluations
        # Of the processor: what others make this thread wait for is not what its figures cost.
        begun_s = time.thread_time()
        evaluations = self._read(query)
        took_s = time.thread_time() - begun_s
        if took_s > _CHEAP_S:
            if len(self._made) >= _MAX_NUM_KEPT:
                self._made.clear()
            self._made[query] = _Made(evaluations, time.monotonic() + _NUM_TIMES_AS_LONG * took_s)
        return evaluations

    def _read(self, query: ReportQuery) -> tuple[AdapterEvaluation, ...]:
        period = Period(self._clock(), query.window_s, query.num_windows)
        with as_store_error(), self._reader.begin() as connection:
            totals = self._totals(connection, query.adapter)
            return tuple(
                evaluate(label, totals[label], self._examined(connection, label), period) for label in sorted(totals)
            )

    def _totals(self, connection: sa.Connection, adapter: str) -> dict[str, Totals]:
        of = REQUESTS.c
        query = (
            sa.select(
                of.adapters,
                sa.func.count(),
                sa.func.sum(sa.case((of.code == OK, 0), else_=1)),
                sa.func.count(SCORES.c.key),
            )
            .outerjoin(SCORES, (SCORES.c.key == of.key) & ~SCORES.c.is_waiting)
            .group_by(of.adapters)
            .order_by(sa.func.max(of.finished_s).desc())
        )
        if adapter:  # roughly, so that the rest is not counted for nothing
            query = query.where(of.adapters.contains(adapter, autoescape=True))
        rows = [row for row in connection.execute(query) if not adapter or _is_of(row[0], adapter)]
        return {label: Totals(num, int(errors), scored) for label, num, errors, scored in rows[: self._max_num_labels]}

    def _examined(self, connection: sa.Connection, label: str) -> list[Examined]:
        of = REQUESTS.c
        query = (
            sa.select(of.code, of.finished_s, of.num_prompt_tokens, of.signals, SCORES.c.scores)
            .outerjoin(SCORES, SCORES.c.key == of.key)
            .where(of.adapters == label)
            .order_by(of.finished_s.desc())
            .limit(self._max_num_examined)
        )
        return [Examined(*row) for row in connection.execute(query)]


def _is_of(label: str, adapter: str) -> bool:
    return adapter == label or any(adapter in (part, part.partition(":")[0]) for part in label.split("+"))
