"""Ended requests, their references and scores, and reference sets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "evaluation_requests",
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("request_id", sa.String(160), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("adapters", sa.String(200), nullable=False),
        sa.Column("digests", sa.JSON, nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("input_sha256", sa.String(64), nullable=False),
        sa.Column("num_prompt_tokens", sa.Integer, nullable=False),
        sa.Column("num_completion_tokens", sa.Integer, nullable=False),
        sa.Column("ttft_s", sa.Float, nullable=True),
        sa.Column("e2e_s", sa.Float, nullable=False),
        sa.Column("finished_s", sa.Float, nullable=False),
        sa.Column("rollout_id", sa.String(64), nullable=True),
        sa.Column("arm", sa.String(16), nullable=True),
        sa.Column("signals", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=True),
        sa.Index("evaluation_requests_by_caller", "who", "request_id"),
        sa.Index("evaluation_requests_by_adapters", "adapters", "finished_s"),
        sa.Index("evaluation_requests_by_rollout", "rollout_id", "finished_s"),
        sa.Index("evaluation_requests_by_age", "finished_s"),
    )
    op.create_table(
        "evaluation_scores",
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("reference_sha256", sa.JSON, nullable=False),
        sa.Column("reference_texts", sa.JSON, nullable=True),
        sa.Column("scores", sa.JSON, nullable=True),
        sa.Column("received_s", sa.Float, nullable=False),
        sa.Column("claimed_s", sa.Float, nullable=False),
        sa.Column("is_waiting", sa.Boolean, nullable=False),
        sa.Index("evaluation_scores_waiting", "is_waiting", "claimed_s"),
    )
    op.create_table(
        "evaluation_reference_sets",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("patterns", sa.JSON, nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("num_references", sa.Integer, nullable=False),
        sa.Column("updated_s", sa.Float, nullable=False),
    )
    op.create_table(
        "evaluation_set_references",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("set_name", sa.String(64), primary_key=True),
        sa.Column("input_sha256", sa.String(64), primary_key=True),
        sa.Column("reference_texts", sa.JSON, nullable=False),
        sa.Index("evaluation_set_references_by_input", "input_sha256"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in (
        "evaluation_set_references",
        "evaluation_reference_sets",
        "evaluation_scores",
        "evaluation_requests",
    ):
        op.drop_table(table)
