"""The earliest class that requests of a key may have; none of those made before may go before others'."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column."""
    column = sa.Column("first_priority", sa.Integer, nullable=False, server_default="0")
    with op.batch_alter_table("api_keys") as table:
        table.add_column(column)


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("first_priority")
