"""Adapters on the HTTP wire."""

from typing_extensions import TypedDict

from adapters.registry import AdapterRecord, VersionRecord


class VersionWire(TypedDict):
    """One version of an adapter; ``created_s`` counts from the epoch."""

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
    prompt_template: str
    created_s: float


class AdapterWire(TypedDict):
    """One adapter: its versions, and the aliases that point at them."""

    name: str
    versions: list[VersionWire]
    aliases: dict[str, int]


class AdapterList(TypedDict):
    """All adapters."""

    adapters: list[AdapterWire]


def version_wire(version: VersionRecord) -> VersionWire:
    """Translate a version."""
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "kind": version.kind,
        "state": version.state,
        "reason": version.reason,
        "rank": version.rank,
        "num_virtual_tokens": version.num_virtual_tokens,
        "size_bytes": version.size_bytes,
        "task": version.task,
        "licence": version.licence,
        "description": version.description,
        "scores": dict(version.scores),
        "prompt_template": version.prompt_template,
        "created_s": version.created_s,
    }


def adapter_wire(adapter: AdapterRecord) -> AdapterWire:
    """Translate an adapter."""
    return {
        "name": adapter.name,
        "versions": [version_wire(version) for version in adapter.versions],
        "aliases": dict(adapter.aliases),
    }
