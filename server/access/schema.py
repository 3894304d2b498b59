"""The tables of API keys and where their migrations lie. Knows no rules of keys."""

from pathlib import Path

import sqlalchemy as sa

SCRIPTS = Path(__file__).parent / "migrations"
VERSION_TABLE = "access_revision"
METADATA = sa.MetaData()

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("patterns", sa.JSON, nullable=False),
    sa.Column("max_requests_per_minute", sa.Integer, nullable=False),
    sa.Column("max_concurrent", sa.Integer, nullable=False),
    sa.Column("first_priority", sa.Integer, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=True),
    sa.Column("revoked_s", sa.Float, nullable=True),
)
# One row. Whoever writes raises it first, so that changes come one after the other, and other processes see them.
COUNTER = sa.Table(
    "api_keys_counter",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
)
