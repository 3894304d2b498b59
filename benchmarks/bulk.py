"""Adapters put into a registry and a store by thousands, before a server opens them: no upload and no check of each.

What is put there must be sound. Knows no server.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter
from adapters.manifest import AdapterManifest
from adapters.registry import DEFAULT_ALIAS, Change, Registry
from adapters.store import AdapterStore
from server.engine.base import ResolvedAdapter

_LEASE_S = 600.0
_TEMPLATE = "Summarize the following conversation.\n\n{{ text }}\n\nSummary:"


def put_in_bulk(store: Path, adapters: Sequence[ResolvedAdapter]) -> list[str]:
    """Put adapters into a store and return their digests.

    Raises:
        StoreError: If it cannot be written.
    """
    opened = AdapterStore(str(store), store)
    return [opened.put(adapter.path) for adapter in adapters]


def register_in_bulk(database: Path, base: Path, adapters: Sequence[ResolvedAdapter], digests: Sequence[str]) -> None:
    """Register adapters under the names of their folders, each as what ``@stable`` means.

    Adapters of one rank are taken to be alike in all but their weights.

    Args:
        database: SQLite file; made if need be.
        base: Folder of their base.
        adapters: At most as many as there are digests.
        digests: Of the adapters, in the same order.

    Raises:
        AdapterError: If they do not fit the base, or the database cannot be written.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    spec, manifests = read_base_spec(base), dict[int, AdapterManifest]()
    registry, change = Registry(f"sqlite:///{database}"), Change("benchmark")
    try:
        for adapter, digest in zip(adapters, digests, strict=False):
            name = adapter.path.name
            if adapter.rank not in manifests:
                found = inspect_adapter(adapter.path, spec, CodecLimits(), name)
                manifests[adapter.rank] = replace(found, prompt_template=_TEMPLATE)
            begun = registry.begin_version(name, change, lease_s=_LEASE_S)
            registry.complete_version(
                name,
                begun.version,
                digest=digest,
                manifest=manifests[adapter.rank],
                size_bytes=sum(file.stat().st_size for file in adapter.path.iterdir()),
                alias=DEFAULT_ALIAS,
                tags=(),
                change=change,
            )
    finally:
        registry.close()
