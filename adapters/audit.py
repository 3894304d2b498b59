"""The audit log: who changed what, when and from where. Rows are only ever added.

A row is written in the transaction of its change, so that neither is ever there without the other. Knows no rules of
adapters and no keys; the table belongs to the registry's migrations. Every function may be called from any thread, with
a connection of that thread.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from adapters.manifest import NAME_PATTERN

AUDIT = sa.Table(
    "audit",
    sa.MetaData(),
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


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change.

    Attributes:
        time_s: Unix time of it.
        who: Who made it, as ``key:3f9a0c``.
        origin: Address it came from; empty where there is none.
        action: What was done: ``upload``, ``set_alias``, ``delete_alias``, ``rollback``, ``retire``, ``label``, or a
            word of a room above.
        name: Adapter it was done to; empty where it was done to none.
        version: Version it was done to, or the alias points at afterwards.
        alias: Alias it was done to; empty where it was done to none.
        digest: Content address of that version; empty where there is none.
        detail: More for people.
    """

    time_s: float
    who: str
    origin: str
    action: str
    name: str = ""
    version: int | None = None
    alias: str = ""
    digest: str = ""
    detail: str = ""


def write(connection: sa.Connection, record: AuditRecord) -> None:
    """Add a row in the connection's transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be written.
    """
    connection.execute(sa.insert(AUDIT).values(asdict(record)))


def read(
    connection: sa.Connection, *, name: str | None, limit: int, visible: Callable[[str], bool]
) -> tuple[AuditRecord, ...]:
    """Return the newest rows, newest first.

    Args:
        connection: In a transaction.
        name: Adapter whose rows are wanted; None for all.
        limit: Most rows to return.
        visible: Whether rows of a name may be seen.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If the database cannot be read.
    """
    if name is not None and not NAME_PATTERN.fullmatch(name):
        return ()  # a caller's text may hold what a database cannot compare
    columns = [column for column in AUDIT.c if column is not AUDIT.c.id]
    query = sa.select(*columns).order_by(AUDIT.c.id.desc()).execution_options(yield_per=500)
    if name is not None:
        query = query.where(AUDIT.c.name == name)
    found: list[AuditRecord] = []
    with connection.execute(query) as rows:
        for row in rows.mappings():
            if len(found) >= limit:
                break
            if visible(row["name"]):
                found.append(AuditRecord(**row))
    return tuple(found)
