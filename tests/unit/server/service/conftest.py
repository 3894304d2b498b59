"""A whole service room on the fake engine, with a registry and a store of its own and a scorer one can slow down."""

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from adapters.codec import CodecLimits
from adapters.registry import Registry, VersionRecord
from adapters.store import AdapterStore
from server.core.request import GenerationRequest
from server.core.sampling import SamplingParams
from server.engine.fake import FakeEngine, FakeEngineConfig
from server.evaluation.evaluator import EvaluationConfig, Evaluator
from server.evaluation.window import FinishedWindow
from server.observability.metrics import Metrics
from server.service.adapters import AdapterCatalog
from server.service.directory import AdapterDirectory
from server.service.feedback import FeedbackService
from server.service.health import HealthService, Phase
from server.service.inference import InferenceConfig, InferenceService
from server.service.staging import StagingArea
from server.service.tokenizer import ByteTokenizer
from tests.fixtures.peft_files import Files

_ENGINE = FakeEngineConfig()
_INFERENCE = InferenceConfig()
_EVALUATION = EvaluationConfig()


@dataclass
class ToyScorer:
    """Gives 100 to a text equal to a reference, else 0, once the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    broken: bool = False

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        if prediction.startswith("a warm"):
            return {}
        assert self.gate.wait(20)
        if self.broken:
            raise RuntimeError("the scorer broke")
        return {"rouge1": 100.0 * (prediction in references)}


@dataclass
class Room:
    engine: FakeEngine
    scorer: ToyScorer
    metrics: Metrics
    directory: AdapterDirectory
    catalog: AdapterCatalog
    feedback: FeedbackService
    evaluator: Evaluator
    health: HealthService
    inference: InferenceService
    data_dir: Path

    async def upload(self, files: Files, name: str, alias: str | None = None) -> VersionRecord:
        async with self.catalog.stage() as staged:
            for file_name, data in files.items():
                await staged.write(file_name, data)
            return await self.catalog.commit(staged, name, alias)

    def counted(self, name: str, /, **labels: str) -> float:
        """Return a figure, summed over the labels that are not given."""
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def nothing_left(self) -> bool:
        """No lease, no row, no staged folder."""
        stats = self.engine.stats()
        staged = list((self.data_dir / "staging").iterdir())
        return not self.directory._leases and stats.num_running == stats.num_waiting == 0 and not staged


class MakeRoom(Protocol):
    def __call__(
        self,
        engine: FakeEngineConfig = ...,
        inference: InferenceConfig = ...,
        evaluation: EvaluationConfig = ...,
        max_num_uploads: int = ...,
    ) -> Awaitable[Room]: ...


@pytest.fixture
async def make_room(tmp_path: Path) -> AsyncIterator[MakeRoom]:
    stack = AsyncExitStack()

    async def make(
        engine: FakeEngineConfig = _ENGINE,
        inference: InferenceConfig = _INFERENCE,
        evaluation: EvaluationConfig = _EVALUATION,
        max_num_uploads: int = 4,
    ) -> Room:
        return await _build(stack, tmp_path, engine, inference, evaluation, max_num_uploads)

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
    max_num_uploads: int,
) -> Room:
    metrics, scorer = Metrics(), ToyScorer()
    scorer.gate.set()
    evaluator = Evaluator(lambda: scorer, evaluation_config, metrics)
    await evaluator.start()
    stack.push_async_callback(evaluator.stop)
    stack.callback(scorer.gate.set)
    engine = FakeEngine(engine_config)
    await engine.start()
    stack.push_async_callback(engine.stop)
    registry = Registry(f"sqlite:///{data_dir / 'registry.db'}")
    stack.callback(registry.close)
    store = AdapterStore(str(data_dir / "store"), data_dir / "local")
    directory = AdapterDirectory(registry, store)
    staging = StagingArea(data_dir / "staging")
    await staging.clear()
    limits = CodecLimits(max_file_bytes=64 * 1024, max_rank=16)
    catalog = AdapterCatalog(
        engine,
        registry=registry,
        store=store,
        directory=directory,
        staging=staging,
        limits=limits,
        metrics=metrics,
        max_num_uploads=max_num_uploads,
    )
    feedback = FeedbackService(evaluator, FinishedWindow(100, 60.0, time.monotonic))
    health = HealthService(engine)
    health.enter(Phase.SERVING)
    service = InferenceService(
        engine,
        tokenizer=ByteTokenizer(),
        base_template="base: {{ text }}",
        directory=directory,
        feedback=feedback,
        health=health,
        metrics=metrics,
        config=inference_config,
    )
    return Room(engine, scorer, metrics, directory, catalog, feedback, evaluator, health, service, data_dir)


AskFor = Callable[..., GenerationRequest]


@pytest.fixture
def ask() -> AskFor:
    """Make a request; what is not said is plain."""

    def make(text: str = "hello there", request_id: str = "r", **options: object) -> GenerationRequest:
        names = {"max_new_tokens", "stop", "num_logprobs"}
        sampling = SamplingParams(**{name: options.pop(name) for name in names & set(options)})  # type: ignore[arg-type]
        return GenerationRequest(request_id, text, sampling=sampling, **options)  # type: ignore[arg-type]

    return make
