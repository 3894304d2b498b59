"""What a version's answers are scored by; versions from before say nothing and get what their task has."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("adapter_versions", sa.Column("metrics", sa.JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("adapter_versions", "metrics")
