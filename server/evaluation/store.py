"""Ended requests with their references and scores, in the registry's database, shared by all servers on it.

What :meth:`EvaluationStore.write` returned from is on disk. Texts of answers and references are written only where the
operator allows it; a request's own text never is. Knows no queues and no scorers. Any thread may call any method, all
of them wait for the database.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from adapters.database import as_store_error, open_database
from server.evaluation.outcome import OK, Arm, Outcome, RolloutOutcome, RolloutPart
from server.evaluation.records import Entry, Record, hash_texts
from server.evaluation.schema import REQUESTS, SCORES, SCRIPTS, VERSION_TABLE

_MAX_NUM_IDS = 500
_MAX_NUM_GONE = 1000
_NUL = "\x00"


class EvaluationStore:
    """The requests of a database.

    Args:
        url: The registry's database URL; the tables are made and migrated as needed.
        store_texts: Whether answers and references may be written, rather than their hashes only.
        clock: Returns Unix time.

    Attributes:
        store_texts: As given.

    Raises:
        StoreError: If the database cannot be used.
    """

    def __init__(self, url: str, *, store_texts: bool = False, clock: Callable[[], float] = time.time) -> None:
        """Open the database and bring its schema up to date."""
        self.store_texts = store_texts
        self._clock = clock
        self.reader, self.writer = open_database(url, SCRIPTS, VERSION_TABLE)

    def close(self) -> None:
        """Close the database's connections; no other method may be called after."""
        self.reader.dispose()

    def write(self, entries: Sequence[Entry]) -> None:
        """Write all entries or none; later references and scores of a request replace the earlier ones.

        Raises:
            StoreError: If the database cannot be written, or does not take one of them.
        """
        # Of a request the first entry counts, which has its signals; of its scores the last.
        requests = {entry.record.key: self._request_row(entry) for entry in reversed(entries)}
        scores = {entry.record.key: row for entry in entries if (row := self._score_row(entry)) is not None}
        with as_store_error(), self.writer.begin() as connection:
            insert_new, replace = _statements(connection.dialect.name)
            if requests:
                connection.execute(insert_new, list(requests.values()))
            if scores:
                connection.execute(replace, list(scores.values()))

    def find(self, who: str, request_ids: Iterable[str]) -> dict[str, Record]:
        """Return somebody's requests by id, the newest of each, where their answers' texts are kept.

        Raises:
            StoreError: If the database cannot be read.
        """
        ids, found = list(dict.fromkeys(request_ids)), dict[str, Record]()
        kept = REQUESTS.c.text.is_not(None) & (REQUESTS.c.code == OK)
        for start in range(0, len(ids), _MAX_NUM_IDS):
            some = REQUESTS.c.request_id.in_(ids[start : start + _MAX_NUM_IDS])
            query = sa.select(REQUESTS).where(REQUESTS.c.who == who, some, kept).order_by(REQUESTS.c.finished_s)
            with as_store_error(), self.reader.begin() as connection:
                found |= {row["request_id"]: _record(row) for row in connection.execute(query).mappings()}
        return found

    def claim(self, *, older_than_s: float, limit: int) -> list[tuple[Record, tuple[str, ...]]]:
        """Return requests whose references wait to be scored, and keep other servers from them for a while.

        Args:
            older_than_s: Seconds since somebody last took them on.
            limit: Most of them.

        Raises:
            StoreError: If the database cannot be used.
        """
        now_s = self._clock()
        waiting = SCORES.c.is_waiting & (SCORES.c.claimed_s <= now_s - older_than_s)
        query = (
            sa.select(REQUESTS, SCORES.c.reference_texts)
            .join(SCORES, SCORES.c.key == REQUESTS.c.key)
            .where(waiting, REQUESTS.c.text.is_not(None))
            .order_by(SCORES.c.received_s)
            .limit(limit)
            .with_for_update(of=SCORES, skip_locked=True)
        )
        with as_store_error(), self.writer.begin() as connection:
            rows = connection.execute(query).mappings().all()
            taken = SCORES.c.key.in_([row["key"] for row in rows])
            connection.execute(sa.update(SCORES).where(taken).values(claimed_s=now_s))
        return [(_record(row), tuple(row["reference_texts"] or ())) for row in rows]

    def trim(self, *, max_age_s: float, max_num: int) -> int:
        """Remove requests that are too old or too many, with their scores, and return how many went.

        Raises:
            StoreError: If the database cannot be written.
        """
        newest = sa.select(REQUESTS.c.finished_s).order_by(REQUESTS.c.finished_s.desc())
        with as_store_error(), self.reader.begin() as connection:
            # The newest one that is one too many; it goes, with all before it.
            first_s = connection.execute(newest.offset(max_num).limit(1)).scalar()
        gone = REQUESTS.c.finished_s < self._clock() - max_age_s
        if first_s is not None:
            gone |= REQUESTS.c.finished_s <= first_s
        some = sa.select(REQUESTS.c.key).where(gone).order_by(REQUESTS.c.finished_s).limit(_MAX_NUM_GONE)
        num_gone, is_more = 0, True
        while is_more:
            # A few at a time: on SQLite all other writers wait meanwhile.
            with as_store_error(), self.writer.begin() as connection:
                keys = connection.execute(some).scalars().all()
                connection.execute(sa.delete(SCORES).where(SCORES.c.key.in_(keys)))
                connection.execute(sa.delete(REQUESTS).where(REQUESTS.c.key.in_(keys)))
            num_gone += len(keys)
            is_more = len(keys) == _MAX_NUM_GONE
        return num_gone

    def rollout_outcomes(self, rollout_id: str) -> Sequence[RolloutOutcome]:
        """Return the requests of a rollout, oldest first, those of all servers.

        Raises:
            StoreError: If the database cannot be read.
        """
        of = REQUESTS.c
        query = (
            sa.select(of.arm, of.code, of.e2e_s, of.finished_s, SCORES.c.scores)
            .outerjoin(SCORES, SCORES.c.key == of.key)
            .where(of.rollout_id == rollout_id)
            .order_by(of.finished_s)
        )
        with as_store_error(), self.reader.begin() as connection:
            return [
                RolloutOutcome(Arm(arm), code, e2e_s, scores or {}, finished_s)
                for arm, code, e2e_s, finished_s, scores in connection.execute(query)
            ]

    def _request_row(self, entry: Entry) -> dict[str, object]:
        outcome, rollout = entry.record.outcome, entry.record.outcome.rollout
        return {
            "key": entry.record.key,
            "request_id": outcome.request_id,
            "who": outcome.who,
            "adapters": outcome.adapters,
            "digests": list(outcome.digests),
            "code": outcome.code,
            "input_sha256": outcome.input_sha256,
            "num_prompt_tokens": outcome.num_prompt_tokens,
            "num_completion_tokens": outcome.num_completion_tokens,
            "ttft_s": outcome.ttft_s,
            "e2e_s": outcome.e2e_s,
            "finished_s": outcome.finished_s,
            "rollout_id": None if rollout is None else rollout.rollout_id,
            "arm": None if rollout is None else str(rollout.arm),
            "signals": dict(entry.signals),
            "metrics": list(entry.record.metrics),
            # PostgreSQL takes every letter but this one.
            "text": outcome.text.replace(_NUL, "\N{REPLACEMENT CHARACTER}") if self.store_texts else None,
        }

    def _score_row(self, entry: Entry) -> dict[str, object] | None:
        is_waiting = entry.scores is None
        # What waits is scored from its texts; where those may not be written, there is nothing to wait with.
        if not entry.references or (is_waiting and not self.store_texts):
            return None
        now_s = self._clock()
        return {
            "key": entry.record.key,
            "reference_sha256": hash_texts(entry.references),
            "reference_texts": list(entry.references) if self.store_texts else None,
            "scores": None if entry.scores is None else dict(entry.scores),
            "received_s": now_s,
            "claimed_s": now_s,
            "is_waiting": is_waiting,
        }


def _insert_into(dialect: str, table: sa.Table) -> "postgresql.Insert | sqlite.Insert":
    """Return an insertion that can say what to do with a row that is there; both databases have the same words."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def _statements(dialect: str) -> tuple[sa.Insert, sa.Insert]:
    """Return what adds requests that are not there, and what adds scores or replaces them.

    Made once: putting them together takes longer than a write of a few rows does.
    """
    scores = _insert_into(dialect, SCORES)
    replaced = {column.name: scores.excluded[column.name] for column in SCORES.c if column.name != "key"}
    return (
        _insert_into(dialect, REQUESTS).on_conflict_do_nothing(index_elements=["key"]),
        scores.on_conflict_do_update(index_elements=["key"], set_=replaced),
    )


def _record(row: sa.RowMapping) -> Record:
    fields: dict[str, Any] = dict(row)
    arm = fields["arm"]
    outcome = Outcome(
        request_id=fields["request_id"],
        who=fields["who"],
        adapters=fields["adapters"],
        digests=tuple(fields["digests"]),
        code=fields["code"],
        input_sha256=fields["input_sha256"],
        num_prompt_tokens=fields["num_prompt_tokens"],
        num_completion_tokens=fields["num_completion_tokens"],
        ttft_s=fields["ttft_s"],
        e2e_s=fields["e2e_s"],
        finished_s=fields["finished_s"],
        text=fields["text"],
        rollout=None if arm is None else RolloutPart(fields["rollout_id"], Arm(arm)),
    )
    return Record(fields["key"], outcome, tuple(fields["metrics"]))
