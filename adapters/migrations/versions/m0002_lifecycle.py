"""The life of a version: uploads, tags, earlier targets of aliases, audit log, idempotency keys, leases, names.

Versions and aliases move to new tables, because SQLite cannot drop a constraint from a table others point at.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_FIELDS = (
    *("name", "version", "digest", "kind", "state", "reason", "rank", "num_virtual_tokens", "size_bytes", "task"),
    *("licence", "description", "scores", "prompt_template", "created_s"),
)
_COLUMNS = ", ".join(_FIELDS)


def upgrade() -> None:
    """Make the new tables and move versions and aliases to them."""
    _make_versions("adapter_versions", sa.Column("tags", sa.JSON, nullable=False), kind_is_known=False)
    op.create_index(
        "one_live_version_per_digest",
        "adapter_versions",
        ["name", "digest"],
        unique=True,
        sqlite_where=sa.text("state = 'ready'"),
        postgresql_where=sa.text("state = 'ready'"),
    )
    _make_aliases("adapter_aliases", "adapter_versions", sa.Column("earlier", sa.JSON, nullable=False))
    _make_names()
    _make_uploads()
    _make_audit()
    _make_idempotency()
    _make_leases()
    op.add_column("revision", sa.Column("removed_counter", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(f"INSERT INTO adapter_versions ({_COLUMNS}, tags) SELECT {_COLUMNS}, '[]' FROM versions")  # noqa: S608
    op.execute(
        "INSERT INTO adapter_aliases (name, alias, version, earlier) SELECT name, alias, version, '[]' FROM aliases"
    )
    op.execute(
        "INSERT INTO adapters (name, counter) SELECT DISTINCT v.name, r.counter FROM versions v CROSS JOIN revision r"
    )
    op.drop_table("aliases")
    op.drop_table("versions")


def downgrade() -> None:
    """Go back, without what the old tables cannot hold, as unfinished uploads and all but the newest with its bytes."""
    _make_versions("versions", sa.UniqueConstraint("name", "digest", name="one_version_per_digest"), kind_is_known=True)
    _make_aliases("aliases", "versions")
    op.execute(
        f"INSERT INTO versions ({_COLUMNS}) SELECT {_COLUMNS} FROM adapter_versions v"  # noqa: S608
        " WHERE state IN ('ready', 'retired') AND NOT EXISTS (SELECT 1 FROM adapter_versions w"
        " WHERE w.name = v.name AND w.digest = v.digest AND w.version > v.version)"
    )
    op.execute("INSERT INTO aliases (name, alias, version) SELECT name, alias, version FROM adapter_aliases")
    op.drop_column("revision", "removed_counter")
    for table in ("leases", "idempotency", "audit", "uploads", "adapters", "adapter_aliases", "adapter_versions"):
        op.drop_table(table)


def _make_versions(table: str, more: "sa.Column[object] | sa.UniqueConstraint", *, kind_is_known: bool) -> None:
    op.create_table(
        table,
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=not kind_is_known),
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
        more,
    )


def _make_aliases(table: str, versions: str, *more: "sa.Column[object]") -> None:
    op.create_table(
        table,
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("alias", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        *more,
        sa.ForeignKeyConstraint(["name", "version"], [f"{versions}.name", f"{versions}.version"], "alias_of_version"),
    )


def _make_names() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("counter", sa.BigInteger, nullable=False, index=True),
    )


def _make_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["adapter_versions.name", "adapter_versions.version"], "upload_of_version"
        ),
    )


def _make_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("time_s", sa.Float, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("name", sa.String(63), nullable=False, index=True),
        sa.Column("version", sa.Integer, nullable=True),
        sa.Column("alias", sa.String(63), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def _make_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("who", sa.String(256), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False, index=True),
    )


def _make_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("instance", sa.String(64), primary_key=True),
        sa.Column("word", sa.String(64), primary_key=True),
        sa.Column("expires_s", sa.Float, nullable=False),
    )
