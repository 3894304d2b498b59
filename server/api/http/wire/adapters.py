"""Adapters and their audit log on the HTTP wire: what goes out."""

from typing_extensions import TypedDict

from adapters.audit import AuditRecord
from adapters.registry import AdapterRecord, VersionRecord


class VersionWire(TypedDict):
    """One version of an adapter; ``created_s`` counts from the epoch, without ``metrics`` its task has its own."""

    name: str
    version: int
    digest: str
    kind: str
    state: str
    reason: str
    rank: int
    num_virtual_tokens: int
    size_bytes: int
    task: str
    licence: str
    description: str
    scores: dict[str, float]
    metrics: list[str]
    prompt_template: str
    created_s: float
    tags: list[str]


class AdapterWire(TypedDict):
    """One adapter: its versions, and the aliases that point at them."""

    name: str
    versions: list[VersionWire]
    aliases: dict[str, int]


class AdapterList(TypedDict):
    """The caller's adapters by name."""

    adapters: list[AdapterWire]


class AuditWire(TypedDict):
    """One change; ``time_s`` counts from the epoch, ``version`` is null when the change was of none."""

    time_s: float
    who: str
    origin: str
    action: str
    name: str
    version: int | None
    alias: str
    digest: str
    detail: str


class AuditList(TypedDict):
    """Changes, the newest first."""

    records: list[AuditWire]


def version_wire(version: VersionRecord) -> VersionWire:
    """Translate a version."""
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "kind": version.kind or "",
        "state": version.state,
        "reason": version.reason,
        "rank": version.rank,
        "num_virtual_tokens": version.num_virtual_tokens,
        "size_bytes": version.size_bytes,
        "task": version.task,
        "licence": version.licence,
        "description": version.description,
        "scores": dict(version.scores),
        "metrics": list(version.metrics),
        "prompt_template": version.prompt_template,
        "created_s": version.created_s,
        "tags": list(version.tags),
    }


def adapter_wire(adapter: AdapterRecord) -> AdapterWire:
    """Translate an adapter."""
    return {
        "name": adapter.name,
        "versions": [version_wire(version) for version in adapter.versions],
        "aliases": dict(adapter.aliases),
    }


def audit_list(records: tuple[AuditRecord, ...]) -> AuditList:
    """Translate a piece of the audit log."""
    return {"records": [_audit_wire(record) for record in records]}


def _audit_wire(record: AuditRecord) -> AuditWire:
    return {
        "time_s": record.time_s,
        "who": record.who,
        "origin": record.origin,
        "action": record.action,
        "name": record.name,
        "version": record.version,
        "alias": record.alias,
        "digest": record.digest,
        "detail": record.detail,
    }
