"""From settings to objects: every part of a server, put together in one place. Knows no ports and no signals."""

import asyncio
from functools import partial

from adapters.codec import CodecLimits
from adapters.registry import Registry
from adapters.store import AdapterStore
from server.access.keys import KeyRing
from server.access.opening import check_may_open, may_run_open
from server.access.quotas import Quotas
from server.core.errors import FailedPreconditionError
from server.engine.base import Engine, EngineInfo, EngineStats
from server.engine.factory import create_engine
from server.evaluation.rollouts.store import RolloutStore
from server.evaluation.room import EvaluationRoom
from server.evaluation.scoring_process import ScoringProcess
from server.evaluation.store import EvaluationStore
from server.observability.metrics import Metrics
from server.observability.spans import NO_TRACER, Tracer
from server.observability.tracers import open_tracer
from server.runtime.base_model import BaseText, read_base_text
from server.runtime.data_dir import read_instance
from server.service.access import AccessService
from server.service.adapters import AdapterCatalog
from server.service.directory import AdapterDirectory
from server.service.door import Services
from server.service.feedback import FeedbackService
from server.service.health import HealthService, Phase
from server.service.inference import InferenceService
from server.service.models import ModelDirectory
from server.service.prompts import BaseSpeech
from server.service.reference_import import ReferenceImport
from server.service.rollout_gate import RolloutGate
from server.service.rollouts import RolloutService
from server.service.shadows import Shadows
from server.service.staging import StagingArea
from server.service.status import StatusService
from server.service.upkeep import Upkeep
from server.service.uploads import UploadService
from server.settings import DEFAULT_MODEL, Settings


class Container:
    """One server's parts.

    Args:
        settings: What the operator set.
    """

    def __init__(self, settings: Settings) -> None:
        """Build nothing yet; :meth:`start` does."""
        self._settings = settings
        self._metrics = Metrics(settings.metrics)
        self._tracer: Tracer = NO_TRACER
        self._engine: Engine | None = None
        self._evaluation: EvaluationRoom | None = None
        self._registry: Registry | None = None
        self._key_ring: KeyRing | None = None
        self._rollouts: RolloutStore | None = None
        self._shadows: Shadows | None = None
        self._directory: AdapterDirectory | None = None
        self._upkeep: Upkeep | None = None
        self._services: Services | None = None

    @property
    def services(self) -> Services:
        """What front ends are given; after :meth:`start`."""
        assert self._services is not None
        return self._services

    @property
    def info(self) -> EngineInfo:
        """What the engine is; after :meth:`start`."""
        assert self._engine is not None
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """What the engine does; after :meth:`start`."""
        assert self._engine is not None
        return self._engine.stats()

    async def start(self) -> None:
        """Load the base, open the registry, warm the scorer and register the library. On failure, :meth:`stop` all.

        Raises:
            MedleyError: If the base or the data directory cannot be used, or others could reach the server and there
                are no keys; the message says what to do.
            AdapterError: If the registry, the store or the base's files cannot be read.
        """
        settings = self._settings
        self._tracer = open_tracer(settings.tracing, self._metrics)
        await self._open_registry()
        model = chosen_model(settings)
        self._engine = await asyncio.to_thread(create_engine, settings.engine, model)
        base_text = await asyncio.to_thread(read_base_text, model)
        await self._engine.start()
        # After the engine: both import the same large libraries, which is no faster in two threads and can go wrong.
        assert self._evaluation is not None
        await self._evaluation.start()
        self._metrics.watch_engine(self._engine.stats)
        self._services = await self._make_services(base_text)
        await self._services.uploads.register_library(settings.library)
        assert self._upkeep is not None
        self._upkeep.start()
        self._services.rollouts.start()

    async def drain(self) -> None:
        """Refuse new requests and let the running ones end within the grace."""
        self.services.health.enter(Phase.DRAINING)
        assert self._engine is not None
        await self._engine.drain(self._settings.drain_grace_s)

    async def stop(self) -> None:
        """Let go of everything that was started, however far :meth:`start` came."""
        if self._upkeep is not None:
            await self._upkeep.stop()
        if self._services is not None:
            await self._services.rollouts.stop()
            await self._services.uploads.close()
        if self._shadows is not None:
            await self._shadows.stop()
        if self._engine is not None:
            await self._engine.stop()
        if self._evaluation is not None:
            await self._evaluation.stop()
        if self._directory is not None:
            self._directory.close()
        for opened in (self._registry, self._key_ring, self._rollouts):
            if opened is not None:
                await asyncio.to_thread(opened.close)
        await asyncio.to_thread(self._tracer.stop)

    async def _open_registry(self) -> None:
        """Open what is in the database, first of all: a server that may not run shall not load a model."""
        settings, data_dir = self._settings, self._settings.data_dir.absolute()
        url = settings.registry_url
        instance = await asyncio.to_thread(read_instance, data_dir)
        self._key_ring = await asyncio.to_thread(KeyRing, url)
        check_may_open(settings.host, any_keys=self._key_ring.any_keys, allow_open=settings.access.allow_open)
        self._registry = await asyncio.to_thread(partial(Registry, url, instance=instance))
        open_store = partial(EvaluationStore, url, store_texts=settings.evaluation.store_texts)
        self._evaluation = EvaluationRoom(
            await asyncio.to_thread(open_store), ScoringProcess, settings.evaluation, self._metrics
        )
        self._rollouts = await asyncio.to_thread(RolloutStore, url)

    async def _make_services(self, base_text: BaseText) -> Services:
        assert self._engine is not None
        assert self._registry is not None
        assert self._key_ring is not None
        assert self._evaluation is not None
        rollouts = self._rollouts
        assert rollouts is not None
        settings, metrics, model_id = self._settings, self._metrics, self._engine.info.base.model_id
        store = await self._open_store()
        directory = self._directory = AdapterDirectory(self._registry, store, lambda: rollouts.routes)
        self._upkeep = self._make_upkeep(store, directory)
        catalog = AdapterCatalog(self._registry, store, directory, drain_s=settings.catalog.drain_s)
        feedback = FeedbackService(self._evaluation)
        health = HealthService(self._engine)
        access = AccessService(
            self._key_ring,
            Quotas(),
            open_without_keys=may_run_open(settings.host, allow_open=settings.access.allow_open),
        )
        self._shadows = self._make_shadows()
        inference = InferenceService(
            self._engine,
            speech=BaseSpeech(
                base_text.tokenizer,
                base_text.prompt_template,
                base_text.chat_template,
                self._engine.info.base.vocab_size,
                is_continued=not self._engine.info.is_encoder_decoder,
            ),
            directory=directory,
            feedback=feedback,
            access=access,
            health=health,
            metrics=metrics,
            config=settings.inference,
            shadows=self._shadows,
            log=settings.log,
        )
        return Services(
            inference=inference,
            adapters=catalog,
            uploads=await self._make_uploads(store),
            rollouts=self._make_rollouts(),
            feedback=feedback,
            references=ReferenceImport(feedback, self._evaluation.sets),
            health=health,
            status=StatusService(self._engine, health),
            models=ModelDirectory(model_id, catalog, self._engine.info.max_model_len),
            access=access,
            metrics=metrics,
            tracer=self._tracer,
        )

    def _make_upkeep(self, store: AdapterStore, directory: AdapterDirectory) -> Upkeep:
        assert self._registry is not None
        assert self._key_ring is not None
        assert self._rollouts is not None
        settings = self._settings
        return Upkeep(
            self._registry,
            self._key_ring,
            store,
            directory,
            poll_s=settings.registry.poll_s,
            sweep_every_s=settings.store.sweep_every_s,
            sweep_grace_s=settings.store.sweep_grace_s,
            also={"refreshing the rollouts": self._rollouts.refresh},
        )

    def _make_shadows(self) -> Shadows:
        assert self._engine is not None
        assert self._rollouts is not None
        config = self._settings.rollouts
        return Shadows(
            self._rollouts,
            self._engine,
            self._metrics,
            max_num_shadows=config.max_num_shadows,
            timeout_s=config.shadow_timeout_s,
        )

    def _make_rollouts(self) -> RolloutService:
        assert self._registry is not None
        assert self._rollouts is not None
        assert self._evaluation is not None
        gate = RolloutGate(self._rollouts, self._registry, self._evaluation.store, self._metrics)
        look_s = self._settings.rollouts.look_s
        return RolloutService(self._rollouts, self._registry, gate, self._metrics, look_s=look_s)

    async def _open_store(self) -> AdapterStore:
        config, data_dir = self._settings.store, self._settings.data_dir.absolute()
        make = partial(AdapterStore, max_local_bytes=config.max_local_bytes, options=config.options)
        return await asyncio.to_thread(make, config.url or (data_dir / "store").as_uri(), data_dir / "local")

    async def _make_uploads(self, store: AdapterStore) -> UploadService:
        assert self._engine is not None
        assert self._registry is not None
        staging = StagingArea(self._settings.data_dir.absolute() / "staging")
        await staging.clear()
        info, config = self._engine.info, self._settings.catalog
        limits = CodecLimits(
            max_file_bytes=config.max_file_bytes,
            max_rank=info.max_lora_rank,
            max_virtual_tokens=info.max_virtual_tokens,
        )
        return UploadService(
            self._engine,
            registry=self._registry,
            store=store,
            staging=staging,
            limits=limits,
            metrics=self._metrics,
            config=config,
        )


def chosen_model(settings: Settings) -> str:
    """Return the base to serve: what was asked for, else the shipped one; the fake engine can do without.

    Raises:
        FailedPreconditionError: If the shipped base was asked for and is not there.
    """
    if settings.engine.model or settings.engine.name == "fake":
        return settings.engine.model
    if not DEFAULT_MODEL.is_dir():
        raise FailedPreconditionError("the shipped base model is missing; name another by --model")
    return str(DEFAULT_MODEL)
