"""Rollouts, their decisions and their change counter."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rollouts",
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
    op.create_index(
        "one_running_rollout_per_alias",
        "rollouts",
        ["adapter", "alias"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("rollouts_by_adapter", "rollouts", ["adapter", "created_s"])
    op.create_table(
        "rollout_decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("rollout_id", sa.String(32), nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("by", sa.String(256), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("ix_rollout_decisions_rollout_id", "rollout_decisions", ["rollout_id"])
    counter = op.create_table(
        "rollouts_counter",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("counter", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "counter": 0}])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("rollouts_counter", "rollout_decisions", "rollouts"):
        op.drop_table(table)
