"""The tables of rollouts and their decisions, and where their migrations lie. Knows no rules."""

from pathlib import Path

import sqlalchemy as sa

SCRIPTS = Path(__file__).parent / "migrations"
VERSION_TABLE = "medley_rollouts_version"
METADATA = sa.MetaData()

# ``promotion`` is the decision to promote, made and not yet carried out: who sees it carries it out.
ROLLOUTS = sa.Table(
    "rollouts",
    METADATA,
    sa.Column("rollout_id", sa.String(32), primary_key=True),
    sa.Column("adapter", sa.String(63), nullable=False),
    sa.Column("alias", sa.String(63), nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("ended_s", sa.Float, nullable=True),
    sa.Column("promotion", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("arms", sa.JSON, nullable=False),
    sa.Column("who", sa.String(256), nullable=False),
    sa.Column("idempotency_key", sa.String(128), nullable=False),
)
sa.Index(
    "one_running_rollout_per_alias",
    ROLLOUTS.c.adapter,
    ROLLOUTS.c.alias,
    unique=True,
    sqlite_where=ROLLOUTS.c.state == "running",
    postgresql_where=ROLLOUTS.c.state == "running",
)
sa.Index("rollouts_by_adapter", ROLLOUTS.c.adapter, ROLLOUTS.c.created_s)
# Rows are only ever added.
DECISIONS = sa.Table(
    "rollout_decisions",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rollout_id", sa.String(32), nullable=False, index=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("by", sa.String(256), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)
# One row. Whoever writes raises it first, so that changes come one after the other, and other servers see them.
COUNTER = sa.Table(
    "rollouts_counter",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
)
