"""New versions: bytes or a source in, a checked and registered version out.

An upload passes four gates before anyone can name it: file names and sizes while it streams, the codec's validation of
every tensor, a run on the engine, and the registry. Only then do its bytes and its name stay; a refusal at any gate, a
caller who goes away and an upload that takes too long leave nothing behind. Event loop's thread only; what blocks runs
in threads.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from adapters.adapter_folder import CONFIG_FILE, adapter_files
from adapters.codec import CodecLimits, inspect_adapter
from adapters.digest import digest_files
from adapters.errors import AdapterError, StoreError
from adapters.manifest import AdapterManifest, check_name
from adapters.prompting import check_template
from adapters.registry import DEFAULT_ALIAS, Registry, VersionRecord
from adapters.registry_records import check_key, check_tags
from adapters.scoring.plugins import check_metrics
from adapters.sources import fetch_source
from adapters.store import AdapterStore
from server.core.errors import (
    DeadlineExceededError,
    ErrorCode,
    InvalidArgumentError,
    MedleyError,
    PermissionDeniedError,
    ResourceExhaustedError,
    code_of,
)
from server.core.principal import SYSTEM, Principal
from server.engine.base import Engine, ResolvedAdapter
from server.observability.metrics import Metrics
from server.service.adapters import CatalogConfig, change_by
from server.service.capabilities import check_kind
from server.service.staging import StagedUpload, StagingArea
from server.service.uninterrupted import uninterrupted

__all__ = ["StagedUpload", "UploadService"]

_log = logging.getLogger(__name__)
# Other servers must not take an upload for dead while this one still ends it.
_LEASE_SLACK_S = 60.0
_CLEAN_WAIT_S = 5.0
_RETRY_S = 5.0
_DIGEST_CHARS_IN_KEY = 16


class UploadService:
    """Takes uploads.

    Args:
        engine: Runs a new adapter once before it is registered.
        registry: Names to versions.
        store: Digests to files.
        staging: Where uploads lie while they arrive.
        limits: Sizes and ranks accepted.
        metrics: Where uploads are counted.
        config: How many, how long, and from where.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        registry: Registry,
        store: AdapterStore,
        staging: StagingArea,
        limits: CodecLimits,
        metrics: Metrics,
        config: CatalogConfig,
    ) -> None:
        """Keep the parts."""
        self._engine = engine
        self._registry = registry
        self._store = store
        self._staging = staging
        self._limits = limits
        self._metrics = metrics
        self._config = config
        self._num_uploads = 0
        self._cleanings: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(config.max_num_uploads, thread_name_prefix="upload")

    @asynccontextmanager
    async def stage(self, principal: Principal, name: str) -> AsyncIterator[StagedUpload]:
        """Begin a new version; one that is not committed on leaving is forgotten, with its bytes.

        Raises:
            PermissionDeniedError: If the name is not one of the caller's.
            InvalidArgumentError: If the name is the base's own.
            InvalidAdapterReferenceError: If the name is not well formed.
            ResourceExhaustedError: If too many uploads run already.
            StoreError: If the database or the disk cannot be written.
            DeadlineExceededError: If the upload takes too long.
        """
        code = str(ErrorCode.CANCELLED)
        try:
            async with self._staged(principal, name) as staged:
                yield staged
            code = "OK" if staged.committed else code
        except (AdapterError, MedleyError) as error:
            code = str(code_of(error))
            self._metrics.adapter_failed("upload", error)
            raise
        finally:
            self._metrics.uploads.labels(code=code).inc()

    async def commit(
        self,
        staged: StagedUpload,
        *,
        alias: str | None = None,
        tags: tuple[str, ...] = (),
        idempotency_key: str = "",
    ) -> VersionRecord:
        """Take a staged upload, complete, through every gate and return the version it is now.

        The bytes a live version of the name has give that version.

        Args:
            staged: The upload.
            alias: Alias to point at the version, or None.
            tags: Words to find it by.
            idempotency_key: The caller's word for this upload; the same again gives the first answer.

        Raises:
            AdapterError: If alias, tags or key are not well formed, the files are not an adapter this base can serve,
                the key was used for something else, or store or database cannot be written.
            UnavailableError: If the engine is dead.
        """
        if alias is not None:
            check_name(alias)
        check_tags(tags)
        check_key(idempotency_key)
        await staged.finish()
        name, version, folder = staged.record.name, staged.record.version, staged.folder
        await asyncio.to_thread(self._registry.mark_validating, name, version)
        manifest = await staged.run(partial(inspect_adapter, folder, self._engine.info.base, self._limits, name))
        check_kind(self._engine.info, manifest.kind)
        if manifest.prompt_template:
            check_template(manifest.prompt_template)
        check_metrics(manifest.metrics)
        digest, size_bytes = await staged.run(partial(_measure, folder))
        await self._engine.check_adapter(_resolved(digest, manifest, folder))
        digest = await staged.run(partial(self._store.put, folder))
        complete = partial(
            self._registry.complete_version,
            digest=digest,
            manifest=manifest,
            size_bytes=size_bytes,
            alias=alias,
            tags=tags,
            change=change_by(staged.principal, idempotency_key),
        )
        return await self._complete(staged, partial(complete, name, version), partial(self._store.keep, folder, digest))

    async def from_source(
        self,
        principal: Principal,
        name: str,
        source: str,
        *,
        alias: str | None = None,
        tags: tuple[str, ...] = (),
        idempotency_key: str = "",
    ) -> VersionRecord:
        """Fetch an adapter from where the operator allows, and make it a version as every other upload.

        Raises:
            SourceNotAllowedError: If the operator has not allowed this source.
            SourceError: If it cannot be fetched.
            MedleyError: As :meth:`stage` and :meth:`commit`.
            AdapterError: As :meth:`stage` and :meth:`commit`.
        """
        async with self.stage(principal, name) as staged:
            fetch = partial(
                fetch_source,
                source,
                staged.folder,
                allowed=self._config.allowed_sources,
                max_file_bytes=self._limits.max_file_bytes,
                max_text_bytes=self._limits.max_text_bytes,
                options=self._config.source_options,
                timeout_s=self._config.upload_lease_s,
            )
            await staged.run(fetch)
            return await self.commit(staged, alias=alias, tags=tags, idempotency_key=idempotency_key)

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

    async def close(self) -> None:
        """Let what was given up be cleaned away, for a short while."""
        if self._cleanings:
            _, late = await asyncio.wait(self._cleanings, timeout=_CLEAN_WAIT_S)
            for cleaning in late:
                cleaning.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _register_shipped(self, folder: Path) -> None:
        digest, _ = await asyncio.to_thread(_measure, folder)
        known = {record.name: record for record in self._registry.list()}.get(folder.name)
        # A retired one stays retired: somebody deleted it.
        if known is not None and any(version.digest == digest for version in known.versions):
            return
        async with self._staged(SYSTEM, folder.name) as staged:
            await staged.run(partial(_copy, folder, staged.folder))
            # Of several servers that start at once only the first one points the alias.
            key = f"library {folder.name} {digest[:_DIGEST_CHARS_IN_KEY]}"
            record = await self.commit(staged, alias=DEFAULT_ALIAS, idempotency_key=key)
        _log.info("library adapter registered", extra={"adapter": f"{record.name}:{record.version}"})

    @asynccontextmanager
    async def _staged(self, principal: Principal, name: str) -> AsyncIterator[StagedUpload]:
        self._check_name(principal, name)
        if self._num_uploads >= self._config.max_num_uploads:
            raise ResourceExhaustedError(f"{self._num_uploads} uploads run already; try again later")
        self._num_uploads += 1
        begin = partial(self._registry.begin_version, lease_s=self._config.upload_lease_s + _LEASE_SLACK_S)
        begun = asyncio.create_task(asyncio.to_thread(begin, name, change_by(principal, "")))
        staged: StagedUpload | None = None
        clock = asyncio.timeout(self._config.upload_lease_s)
        try:
            async with clock:
                # Shielded, so that a version begun for a caller who is gone is known, and forgotten.
                record = await asyncio.shield(begun)
                staged = StagedUpload(
                    self._staging.place(),
                    principal=principal,
                    record=record,
                    clock=clock,
                    limits=self._limits,
                    pool=self._pool,
                )
                await staged.open()
                yield staged
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineExceededError(f"the upload took over {self._config.upload_lease_s:g} s") from error
        finally:
            await self._clean_away(begun, staged)

    def _check_name(self, principal: Principal, name: str) -> None:
        if not principal.sees(name):
            raise PermissionDeniedError("this key is not for adapters of this name", param="name")
        check_name(name)
        if name == self._engine.info.base.model_id:
            raise InvalidArgumentError(f"{name!r} is the base's own name", param="name")

    async def _complete(
        self, staged: StagedUpload, complete: Callable[[], VersionRecord], keep: Callable[[], None]
    ) -> VersionRecord:
        # From here on it counts: neither the clock nor a caller who goes away leaves it undecided.
        staged.clock.reschedule(None)

        async def completed() -> VersionRecord:
            record = await asyncio.to_thread(complete)
            staged.committed = True
            await asyncio.to_thread(keep)
            return record

        return await uninterrupted(completed())

    async def _clean_away(self, begun: "asyncio.Task[VersionRecord]", staged: StagedUpload | None) -> None:
        """Remove an upload's bytes and, unless it was committed, its version; wait for it, but not for ever."""
        cleanings = [asyncio.create_task(self._free(staged))]
        if staged is None or not staged.committed:
            cleanings.append(asyncio.create_task(self._abandon(begun)))
        for cleaning in cleanings:
            self._cleanings.add(cleaning)
            cleaning.add_done_callback(self._cleanings.discard)
        await asyncio.wait(cleanings, timeout=_CLEAN_WAIT_S)

    async def _free(self, staged: StagedUpload | None) -> None:
        try:
            if staged is not None:
                await staged.remove()
        finally:
            self._num_uploads -= 1

    async def _abandon(self, begun: "asyncio.Task[VersionRecord]") -> None:
        await asyncio.wait({begun})
        if begun.cancelled() or begun.exception() is not None:
            return
        record = begun.result()
        while True:
            try:
                await asyncio.to_thread(self._registry.abandon_version, record.name, record.version)
                break
            except StoreError as error:
                _log.warning("an upload is still in the registry: %s", error.message, extra={"adapter": record.name})
                await asyncio.sleep(_RETRY_S)


def _resolved(digest: str, manifest: AdapterManifest, folder: Path) -> ResolvedAdapter:
    return ResolvedAdapter(digest, manifest.kind, folder, manifest.num_virtual_tokens, manifest.rank)


def _measure(folder: Path) -> tuple[str, int]:
    files = adapter_files(folder)
    return digest_files(files), sum(path.stat().st_size for path in files.values())


def _copy(folder: Path, into: Path) -> None:
    for name, path in adapter_files(folder).items():
        shutil.copyfile(path, into / name)


def _peft_folders(library: Path) -> list[Path]:
    return sorted(config.parent for config in library.glob(f"*/{CONFIG_FILE}"))
