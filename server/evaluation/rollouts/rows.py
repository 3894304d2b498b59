"""Rollouts and decisions to database rows and back. Knows no rules and no transactions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from server.evaluation.rollouts.records import (
    Action,
    ArmFigures,
    Arms,
    Decision,
    Mode,
    Plan,
    Rollout,
    State,
    Terms,
    Verdict,
)
from server.evaluation.rollouts.schema import DECISIONS, ROLLOUTS


def rollout_of(row: sa.RowMapping, decisions: tuple[Decision, ...] = ()) -> Rollout:
    """Return the rollout of a row."""
    arms: Mapping[str, dict[str, Any]] = row["arms"]
    return Rollout(
        rollout_id=row["rollout_id"],
        plan=plan_of(row["plan"]),
        state=State(row["state"]),
        verdict=Verdict(row["verdict"]),
        created_s=row["created_s"],
        ended_s=row["ended_s"],
        promotion=None if row["promotion"] is None else decision_of(row["promotion"]),
        origin=row["origin"],
        arms=Arms(**{arm: ArmFigures(**figures) for arm, figures in arms.items()}),
        decisions=decisions,
    )


def plan_of(fields: Mapping[str, Any]) -> Plan:
    """Return the plan of a JSON object."""
    terms = fields["terms"]
    return Plan(**{**fields, "terms": Terms(**{**terms, "mode": Mode(terms["mode"])})})


def decision_of(fields: Mapping[str, Any] | sa.RowMapping) -> Decision:
    """Return the decision of a JSON object or a row."""
    return Decision(fields["at_s"], fields["by"], Action(fields["action"]), fields["reason"], fields["data"])


def decision_row(rollout_id: str, decision: Decision) -> dict[str, object]:
    """Return a decision's row."""
    return {"rollout_id": rollout_id, **asdict(decision)}


def read_decisions(connection: sa.Connection, rollout_ids: list[str]) -> dict[str, tuple[Decision, ...]]:
    """Return the decisions about some rollouts, oldest first.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be read.
    """
    query = sa.select(DECISIONS).where(DECISIONS.c.rollout_id.in_(rollout_ids)).order_by(DECISIONS.c.id)
    found: dict[str, list[Decision]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["rollout_id"], []).append(decision_of(row))
    return {rollout_id: tuple(decisions) for rollout_id, decisions in found.items()}


def read_rollouts(connection: sa.Connection, *which: sa.ColumnElement[bool], limit: int) -> tuple[Rollout, ...]:
    """Return rollouts with their decisions, newest first.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be read.
    """
    newest_first = (ROLLOUTS.c.created_s.desc(), ROLLOUTS.c.rollout_id)
    query = sa.select(ROLLOUTS).where(*which).order_by(*newest_first).limit(limit)
    rows = connection.execute(query).mappings().all()
    decisions = read_decisions(connection, [row["rollout_id"] for row in rows])
    return tuple(rollout_of(row, decisions.get(row["rollout_id"], ())) for row in rows)
