"""The registry's tables and where their migrations lie. Knows no rules of adapters."""

from pathlib import Path

import sqlalchemy as sa

from adapters.audit import AUDIT

SCRIPTS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
METADATA = AUDIT.metadata

# One row. The counter grows with every change; whoever writes locks the row first, so changes are one after the other
# and are seen in their order. ``removed_counter`` is its value when a name last went for good.
REVISION = sa.Table(
    "revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
    sa.Column("removed_counter", sa.BigInteger, nullable=False, server_default="0"),
)
# Every name that has versions, and the counter's value at its last change.
ADAPTERS = sa.Table(
    "adapters",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("counter", sa.BigInteger, nullable=False, index=True),
)
VERSIONS = sa.Table(
    "adapter_versions",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("num_virtual_tokens", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("licence", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("scores", sa.JSON, nullable=False),
    sa.Column("prompt_template", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False, server_default="[]"),
)
sa.Index(
    "one_live_version_per_digest",
    VERSIONS.c.name,
    VERSIONS.c.digest,
    unique=True,
    sqlite_where=VERSIONS.c.state == "ready",
    postgresql_where=VERSIONS.c.state == "ready",
)
# Versions whose files still arrive or are checked: who does it, and until when it is believed to be at it.
UPLOADS = sa.Table(
    "uploads",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("instance", sa.String(64), nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(
        ["name", "version"], ["adapter_versions.name", "adapter_versions.version"], name="upload_of_version"
    ),
)
# ``earlier`` is a list of the versions an alias pointed at before, oldest first.
ALIASES = sa.Table(
    "adapter_aliases",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("earlier", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(
        ["name", "version"], ["adapter_versions.name", "adapter_versions.version"], name="alias_of_version"
    ),
)
# Answers to changes made under a key; ``answer`` is compressed JSON.
IDEMPOTENCY = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("who", sa.String(256), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False, index=True),
)
# What each server's running requests use, in words only the servers understand.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("instance", sa.String(64), primary_key=True),
    sa.Column("word", sa.String(64), primary_key=True),
    sa.Column("expires_s", sa.Float, nullable=False),
)
