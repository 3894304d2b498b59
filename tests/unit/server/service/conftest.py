"""A whole service room on the fake engine, with a registry and a store of its own and a scorer one can slow down."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

import pytest

from adapters.codec import CodecLimits
from adapters.registry import Registry, VersionRecord
from adapters.store import AdapterStore
from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.core.principal import Principal, anonymous
from server.core.request import GenerationRequest
from server.core.sampling import SamplingParams
from server.engine.fake import FakeEngine, FakeEngineConfig
from server.evaluation.config import EvaluationConfig
from server.evaluation.outcome import RolloutOutcome
from server.evaluation.rollouts.store import RolloutStore
from server.evaluation.room import EvaluationRoom
from server.evaluation.store import EvaluationStore
from server.observability.logging import LogConfig
from server.observability.metrics import Metrics
from server.service.access import AccessService
from server.service.adapters import AdapterCatalog, CatalogConfig
from server.service.chat import ChatTemplate
from server.service.directory import AdapterDirectory
from server.service.feedback import FeedbackService
from server.service.generation import Generation
from server.service.health import HealthService, Phase
from server.service.inference import InferenceConfig, InferenceService
from server.service.prompts import BaseSpeech
from server.service.reference_import import ReferenceImport
from server.service.shadows import Shadows
from server.service.staging import StagingArea
from server.service.tokenizer import ByteTokenizer
from server.service.uploads import UploadService
from tests.fixtures.peft_files import Files

_ENGINE = FakeEngineConfig()
# Answers wait for scores as long as a busy machine may take to make them.
_INFERENCE = InferenceConfig(score_wait_s=10.0)
_EVALUATION = EvaluationConfig()
_CATALOG = CatalogConfig()
_LOG = LogConfig()
ANYONE = anonymous()


@dataclass
class ToyScorer:
    """Gives 100 to a text equal to a reference, else 0, once the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        self.asked.append(tuple(metrics))
        if prediction.startswith("a warm"):
            return {}
        assert self.gate.wait(20)
        if self.broken:
            raise RuntimeError("the scorer broke")
        return {"rouge1": 100.0 * (prediction in references)}

    def close(self) -> None:
        pass


@dataclass
class Room:
    engine: FakeEngine
    scorer: ToyScorer
    metrics: Metrics
    directory: AdapterDirectory
    registry: Registry
    store: AdapterStore
    catalog: AdapterCatalog
    uploads: UploadService
    feedback: FeedbackService
    evaluation: EvaluationRoom
    references: ReferenceImport
    health: HealthService
    inference: InferenceService
    key_ring: KeyRing
    rollouts: RolloutStore
    shadows: Shadows
    data_dir: Path

    def rollout_outcomes(self, rollout_id: str) -> Sequence[RolloutOutcome]:
        self.evaluation.recorder.flush().result(20)
        return self.evaluation.store.rollout_outcomes(rollout_id)

    async def upload(
        self, files: Files, name: str, alias: str | None = None, principal: Principal = ANYONE
    ) -> VersionRecord:
        async with self.uploads.stage(principal, name) as staged:
            for file_name, data in files.items():
                await staged.write(file_name, data)
            return await self.uploads.commit(staged, alias=alias)

    async def open(self, request: GenerationRequest, principal: Principal = ANYONE) -> Generation:
        return await self.inference.open(principal, request)

    def counted(self, name: str, /, **labels: str) -> float:
        """Return a figure, summed over the labels that are not given."""
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def nothing_left(self) -> bool:
        """No lease, no pin, no row, no staged folder, no version half made."""
        stats = self.engine.stats()
        staged = list((self.data_dir / "staging").iterdir())
        leased = self.directory._leases or self.store._local._pins
        begun = [version for record in self.registry.list() for version in record.versions if not version.digest]
        return not leased and stats.num_running == stats.num_waiting == 0 and not staged and not begun


class MakeRoom(Protocol):
    def __call__(
        self,
        engine: FakeEngineConfig = ...,
        inference: InferenceConfig = ...,
        evaluation: EvaluationConfig = ...,
        catalog: CatalogConfig = ...,
        chat_template: ChatTemplate | None = ...,
        log: LogConfig = ...,
    ) -> Awaitable[Room]: ...


@pytest.fixture
async def make_room(tmp_path: Path) -> AsyncIterator[MakeRoom]:
    stack = AsyncExitStack()

    async def make(
        engine: FakeEngineConfig = _ENGINE,
        inference: InferenceConfig = _INFERENCE,
        evaluation: EvaluationConfig = _EVALUATION,
        catalog: CatalogConfig = _CATALOG,
        chat_template: ChatTemplate | None = None,
        log: LogConfig = _LOG,
    ) -> Room:
        return await _build(stack, tmp_path, engine, inference, evaluation, catalog, chat_template, log)

    yield make
    await stack.aclose()


@pytest.fixture
async def room(make_room: MakeRoom) -> Room:
    return await make_room()


async def _build(
    stack: AsyncExitStack,
    data_dir: Path,
    engine_config: FakeEngineConfig,
    inference_config: InferenceConfig,
    evaluation_config: EvaluationConfig,
    catalog_config: CatalogConfig,
    chat_template: ChatTemplate | None,
    log: LogConfig,
) -> Room:
    metrics, scorer = Metrics(), ToyScorer()
    scorer.gate.set()
    evaluations = EvaluationStore(f"sqlite:///{data_dir / 'registry.db'}", store_texts=evaluation_config.store_texts)
    evaluation = EvaluationRoom(evaluations, lambda: scorer, evaluation_config, metrics)
    await evaluation.start()
    stack.push_async_callback(evaluation.stop)
    stack.callback(scorer.gate.set)
    engine = FakeEngine(engine_config)
    await engine.start()
    stack.push_async_callback(engine.stop)
    registry = Registry(f"sqlite:///{data_dir / 'registry.db'}")
    stack.callback(registry.close)
    key_ring = KeyRing(f"sqlite:///{data_dir / 'registry.db'}")
    stack.callback(key_ring.close)
    store = AdapterStore(str(data_dir / "store"), data_dir / "local")
    rollouts = RolloutStore(f"sqlite:///{data_dir / 'registry.db'}")
    stack.callback(rollouts.close)
    directory = AdapterDirectory(registry, store, lambda: rollouts.routes)
    stack.callback(directory.close)
    staging = StagingArea(data_dir / "staging")
    await staging.clear()
    uploads = UploadService(
        engine,
        registry=registry,
        store=store,
        staging=staging,
        limits=CodecLimits(max_file_bytes=64 * 1024, max_rank=16),
        metrics=metrics,
        config=catalog_config,
    )
    stack.push_async_callback(uploads.close)
    catalog = AdapterCatalog(registry, store, directory, drain_s=catalog_config.drain_s)
    feedback = FeedbackService(evaluation)
    health = HealthService(engine)
    health.enter(Phase.SERVING)
    shadows = Shadows(rollouts, engine, metrics, max_num_shadows=2, timeout_s=5.0)
    stack.push_async_callback(shadows.stop)
    service = InferenceService(
        engine,
        speech=BaseSpeech(
            ByteTokenizer(),
            "base: {{ text }}",
            chat_template,
            engine.info.base.vocab_size,
            is_continued=not engine.info.is_encoder_decoder,
        ),
        directory=directory,
        feedback=feedback,
        access=AccessService(key_ring, Quotas(), open_without_keys=True),
        health=health,
        metrics=metrics,
        config=inference_config,
        log=log,
        shadows=shadows,
    )
    return Room(
        engine,
        scorer,
        metrics,
        directory,
        registry,
        store,
        catalog,
        uploads,
        feedback,
        evaluation,
        ReferenceImport(feedback, evaluation.sets),
        health,
        service,
        key_ring,
        rollouts,
        shadows,
        data_dir,
    )


AskFor = Callable[..., GenerationRequest]


@pytest.fixture
def ask() -> AskFor:
    """Make a request; what is not said is plain."""

    def make(text: str = "hello there", request_id: str = "r", **options: object) -> GenerationRequest:
        names = {field.name for field in fields(SamplingParams)}
        sampling = SamplingParams(**{name: options.pop(name) for name in names & set(options)})  # type: ignore[arg-type]
        return GenerationRequest(request_id, text, sampling=sampling, **options)  # type: ignore[arg-type]

    return make
