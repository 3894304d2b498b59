"""The registry as it is known in memory: what reads are answered from.

A snapshot never changes; a change makes another one. Knows no database. May be read from any thread without waiting.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.registry_records import (
    DEFAULT_ALIAS,
    AdapterRecord,
    VersionRecord,
    VersionState,
    aliased_version,
    check_ready,
    no_adapter,
    no_version,
    parse_reference,
)


@dataclass(frozen=True, slots=True)
class _Known:
    """An adapter, its versions by number, and what its bare name means."""

    record: AdapterRecord
    versions: Mapping[int, VersionRecord]
    bare: VersionRecord


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every adapter, at one value of the change counter or later.

    Attributes:
        counter: All changes up to this value are in it.
        generation: Differs from that of the snapshot before.
    """

    counter: int
    generation: int = 0
    _adapters: Mapping[str, _Known] = field(default_factory=dict)

    def resolve(self, reference: str) -> VersionRecord:
        """Return the version a reference means; a bare name means ``@stable``, else the newest ready version.

        Raises:
            InvalidAdapterReferenceError: If the reference is not well formed.
            AdapterNotFoundError: If there is no such name, version or alias.
            AdapterNotReadyError: If the version is known but not ready, or none is.
        """
        wanted = parse_reference(reference)
        known = self._adapters.get(wanted.name)
        if known is None:
            raise no_adapter(wanted.name)
        if wanted.alias is not None:
            return check_ready(known.versions[aliased_version(known.record, wanted.alias)])
        if wanted.version is None:
            return check_ready(known.bare)
        version = known.versions.get(wanted.version)
        if version is None:
            raise no_version(wanted.name, wanted.version)
        return check_ready(version)

    def get(self, name: str) -> AdapterRecord:
        """Return one adapter.

        Raises:
            AdapterNotFoundError: If there is none of this name.
        """
        known = self._adapters.get(name)
        if known is None:
            raise no_adapter(name)
        return known.record

    def list(self) -> tuple[AdapterRecord, ...]:
        """Return all adapters by name."""
        return tuple(self._adapters[name].record for name in sorted(self._adapters))

    def names(self) -> frozenset[str]:
        """Return every name."""
        return frozenset(self._adapters)

    def changed(self, counter: int, records: Iterable[AdapterRecord], gone: Iterable[str]) -> "Snapshot":
        """Return the snapshot in which some adapters are as given and some names are gone."""
        adapters = {**self._adapters, **{record.name: _known(record) for record in records}}
        for name in gone:
            adapters.pop(name, None)
        return Snapshot(counter, self.generation + 1, adapters)


def _known(record: AdapterRecord) -> _Known:
    versions = {version.version: version for version in record.versions}
    if DEFAULT_ALIAS in record.aliases:
        return _Known(record, versions, versions[record.aliases[DEFAULT_ALIAS]])
    ready = [version for version in record.versions if version.state is VersionState.READY]
    return _Known(record, versions, (ready or record.versions)[-1])
