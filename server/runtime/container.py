"""From settings to objects: every part of a server, put together in one place. Knows no ports and no signals."""

import asyncio
import logging
import time
from pathlib import Path

from adapters.codec import CodecLimits
from adapters.registry import Registry
from adapters.scoring import RougeScorer
from adapters.store import AdapterStore
from server.core.errors import FailedPreconditionError
from server.engine.base import Engine, EngineInfo
from server.engine.factory import create_engine
from server.evaluation.evaluator import Evaluator
from server.evaluation.window import FinishedWindow
from server.observability.metrics import Metrics
from server.runtime.base_model import read_base_text
from server.service.adapters import AdapterCatalog
from server.service.directory import AdapterDirectory
from server.service.door import Services
from server.service.feedback import FeedbackService
from server.service.health import HealthService, Phase
from server.service.inference import InferenceService
from server.service.models import ModelDirectory
from server.service.staging import StagingArea
from server.settings import DEFAULT_MODEL, Settings

_log = logging.getLogger(__name__)


class Container:
    """One server's parts.

    Args:
        settings: What the operator set.
    """

    def __init__(self, settings: Settings) -> None:
        """Build nothing yet; :meth:`start` does."""
        self._settings = settings
        self._metrics = Metrics(settings.metrics)
        self._engine: Engine | None = None
        self._evaluator: Evaluator | None = None
        self._registry: Registry | None = None
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

    async def start(self) -> None:
        """Load the base, open the registry, warm the scorer and register the library. On failure, :meth:`stop` all.

        Raises:
            MedleyError: If the base or the data directory cannot be used; the message says what to do.
            AdapterError: If the registry or the base's files cannot be read.
        """
        settings = self._settings
        model = chosen_model(settings)
        self._evaluator = Evaluator(RougeScorer, settings.evaluation, self._metrics)
        self._engine = await asyncio.to_thread(create_engine, settings.engine, model)
        base_text = await asyncio.to_thread(read_base_text, model)
        await self._engine.start()
        # After the engine: both import the same large libraries, which is no faster in two threads and can go wrong.
        await self._evaluator.start()
        self._metrics.watch_engine(self._engine.stats)
        data_dir = settings.data_dir.absolute()
        self._registry = await asyncio.to_thread(Registry, f"sqlite:///{data_dir / 'registry.db'}")
        store = await asyncio.to_thread(AdapterStore, (data_dir / "store").as_uri(), data_dir / "local")
        directory = AdapterDirectory(self._registry, store)
        catalog = await self._catalog(store, directory, data_dir)
        window = FinishedWindow(
            settings.evaluation.max_num_finished, settings.evaluation.finished_ttl_s, time.monotonic
        )
        feedback = FeedbackService(self._evaluator, window)
        health = HealthService(self._engine)
        inference = InferenceService(
            self._engine,
            tokenizer=base_text.tokenizer,
            base_template=base_text.prompt_template,
            directory=directory,
            feedback=feedback,
            health=health,
            metrics=self._metrics,
            config=settings.inference,
        )
        models = ModelDirectory(self._engine.info.base.model_id, catalog)
        self._services = Services(inference, catalog, feedback, health, models, self._metrics)

    async def drain(self) -> None:
        """Refuse new requests and let the running ones end within the grace."""
        self.services.health.enter(Phase.DRAINING)
        assert self._engine is not None
        await self._engine.drain(self._settings.drain_grace_s)

    async def stop(self) -> None:
        """Let go of everything that was started, however far :meth:`start` came."""
        if self._engine is not None:
            await self._engine.stop()
        if self._evaluator is not None:
            await self._evaluator.stop()
        if self._registry is not None:
            await asyncio.to_thread(self._registry.close)

    async def _catalog(self, store: AdapterStore, directory: AdapterDirectory, data_dir: Path) -> AdapterCatalog:
        assert self._engine is not None
        assert self._registry is not None
        staging = StagingArea(data_dir / "staging")
        await staging.clear()
        info = self._engine.info
        catalog = AdapterCatalog(
            self._engine,
            registry=self._registry,
            store=store,
            directory=directory,
            staging=staging,
            limits=CodecLimits(
                max_file_bytes=self._settings.catalog.max_file_bytes,
                max_rank=info.max_lora_rank,
                max_virtual_tokens=info.max_virtual_tokens,
            ),
            metrics=self._metrics,
            max_num_uploads=self._settings.catalog.max_num_uploads,
        )
        await catalog.register_library(self._settings.library)
        return catalog


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
