"""Uploads, checks, registers and lists adapters.

An upload passes four gates before anyone can name it: file names and sizes while it streams, the codec's validation of
every tensor, a run on the engine, and the registry. Only then do its bytes and its name stay; a refusal at any gate
leaves nothing behind. Event loop's thread only; what blocks runs in threads.
"""

import asyncio
import builtins
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.adapter_folder import CONFIG_FILE, adapter_files
from adapters.codec import CodecLimits, inspect_adapter
from adapters.digest import digest_files
from adapters.errors import AdapterError
from adapters.manifest import AdapterManifest, check_name
from adapters.prompting import check_template
from adapters.registry import DEFAULT_ALIAS, AdapterRecord, Registry, VersionRecord
from adapters.store import AdapterStore
from server.core.errors import ErrorCode, InvalidArgumentError, MedleyError, ResourceExhaustedError, code_of
from server.engine.base import Engine, ResolvedAdapter
from server.observability.metrics import Metrics
from server.service.directory import AdapterDirectory
from server.service.staging import StagedUpload, StagingArea

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CatalogConfig:
    """Limits of uploads.

    Attributes:
        max_num_uploads: Most uploads at once.
        max_file_bytes: Largest weights file.
    """

    max_num_uploads: int = 4
    max_file_bytes: int = 512 * 1024 * 1024


class AdapterCatalog:
    """The adapters of this server.

    Args:
        engine: Runs a new adapter once before it is registered.
        registry: Names to versions.
        store: Digests to files.
        directory: Told of every change of names.
        staging: Where uploads lie while they arrive.
        limits: Sizes and ranks accepted.
        metrics: Where uploads are counted.
        max_num_uploads: Most uploads at once.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        registry: Registry,
        store: AdapterStore,
        directory: AdapterDirectory,
        staging: StagingArea,
        limits: CodecLimits,
        metrics: Metrics,
        max_num_uploads: int,
    ) -> None:
        """Keep the parts."""
        self._engine = engine
        self._registry = registry
        self._store = store
        self._directory = directory
        self._staging = staging
        self._limits = limits
        self._metrics = metrics
        self._max_num_uploads = max_num_uploads
        self._num_uploads = 0

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[StagedUpload]:
        """Give an upload a temporary folder that is removed on leaving, committed or not.

        Raises:
            ResourceExhaustedError: If too many uploads run already.
        """
        if self._num_uploads >= self._max_num_uploads:
            self._metrics.uploads.labels(code=ErrorCode.RESOURCE_EXHAUSTED).inc()
            raise ResourceExhaustedError(f"{self._num_uploads} uploads run already; try again later")
        self._num_uploads += 1
        code = str(ErrorCode.CANCELLED)
        try:
            staged = StagedUpload(await self._staging.make(), self._limits)
            try:
                yield staged
                code = "OK" if staged.committed else code
            finally:
                staged.close()
                await self._staging.remove(staged.folder)
        except Exception as error:
            code = str(code_of(error))
            self._metrics.adapter_failed("upload", error)
            raise
        finally:
            self._num_uploads -= 1
            self._metrics.uploads.labels(code=code).inc()

    async def commit(self, staged: StagedUpload, name: str, alias: str | None) -> VersionRecord:
        """Check a staged upload through every gate and register it as a new version of ``name``.

        The same bytes under the same name give the version they already have.

        Args:
            staged: The upload, complete.
            name: Adapter name; may be new.
            alias: Alias to point at the version, or None.

        Raises:
            InvalidArgumentError: If the name is the base's own.
            AdapterError: If the name is not well formed, or the files are not an adapter this base can serve.
            UnavailableError: If the engine is dead.
        """
        staged.close()
        record = await self._admit(staged.folder, name, alias)
        staged.committed = True
        return record

    async def register_library(self, library: Path) -> None:
        """Register the adapters that ship with the server; known ones and those of another base are left out.

        Args:
            library: Folder of PEFT folders, named as the adapters; others beside them are ignored.
        """
        for folder in await asyncio.to_thread(_peft_folders, library):
            try:
                await self._register_shipped(folder)
            except (AdapterError, MedleyError) as error:
                _log.info("library adapter left out: %s", error.message, extra={"adapter": folder.name})

    async def get(self, name: str) -> AdapterRecord:
        """Return one adapter with its versions and aliases.

        Raises:
            AdapterNotFoundError: If there is none of this name.
        """
        return await asyncio.to_thread(self._registry.get, name)

    async def list(self) -> tuple[AdapterRecord, ...]:
        """Return all adapters by name."""
        return await asyncio.to_thread(self._registry.list)

    async def _register_shipped(self, folder: Path) -> None:
        digest, _ = await asyncio.to_thread(_measure, folder)
        known = {record.name: record for record in await self.list()}.get(folder.name)
        if known is not None and any(version.digest == digest for version in known.versions):
            return
        record = await self._admit(folder, folder.name, DEFAULT_ALIAS)
        _log.info("library adapter registered", extra={"adapter": f"{record.name}:{record.version}"})

    async def _admit(self, folder: Path, name: str, alias: str | None) -> VersionRecord:
        check_name(name)
        if alias is not None:
            check_name(alias)
        base = self._engine.info.base
        if name == base.model_id:
            raise InvalidArgumentError(f"{name!r} is the base's own name", param="name")
        manifest = await asyncio.to_thread(inspect_adapter, folder, base, self._limits, name)
        if manifest.prompt_template:
            check_template(manifest.prompt_template)
        digest, size_bytes = await asyncio.to_thread(_measure, folder)
        await self._engine.check_adapter(_resolved(digest, manifest, folder))
        digest = await asyncio.to_thread(self._store.put, folder)
        record = await asyncio.to_thread(self._registry.add_version, name, digest, manifest, size_bytes, alias)
        self._directory.forget()
        return record


def _resolved(digest: str, manifest: AdapterManifest, folder: Path) -> ResolvedAdapter:
    return ResolvedAdapter(digest, manifest.kind, folder, manifest.num_virtual_tokens, manifest.rank)


def _measure(folder: Path) -> tuple[str, int]:
    files = adapter_files(folder)
    return digest_files(files), sum(path.stat().st_size for path in files.values())


def _peft_folders(library: Path) -> builtins.list[Path]:
    return sorted(config.parent for config in library.glob(f"*/{CONFIG_FILE}"))
