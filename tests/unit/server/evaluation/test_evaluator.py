import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest

from server.core.errors import ResourceExhaustedError, UnavailableError
from server.evaluation.config import EvaluationConfig
from server.evaluation.evaluator import Evaluator
from server.evaluation.records import Record
from server.observability.metrics import Metrics
from tests.fixtures.outcomes import record_of

FINISHED = record_of(adapters="lora:1")


class SlowScorer:
    """Scores when its gate opens; notes the threads it ran on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.asked: list[tuple[str, ...]] = []
        self.threads: set[str] = {threading.current_thread().name}
        self.is_closed = False

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        self.asked.append(tuple(metrics))
        self.threads.add(threading.current_thread().name)
        if not prediction.startswith("a warm"):
            self.entered.set()
            assert self.gate.wait(20)
        return {"rouge1": 50.0}

    def close(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.is_closed = True


def save_at_once(_record: Record, _references: Sequence[str], _scores: Mapping[str, float]) -> "Future[None]":
    saved: Future[None] = Future()
    saved.set_result(None)
    return saved


async def test_scorer_is_built_and_used_on_the_worker_thread_only() -> None:
    built: list[SlowScorer] = []

    def build() -> SlowScorer:
        built.append(SlowScorer())
        return built[0]

    evaluator = Evaluator(build, save_at_once, EvaluationConfig(), Metrics())
    await evaluator.start()
    built[0].gate.set()
    assert await asyncio.wrap_future(evaluator.offer(FINISHED, ["reference"])) == {"rouge1": 50.0}
    await evaluator.stop()
    assert built[0].threads == {"evaluator"}
    assert built[0].is_closed


async def test_start_raises_what_building_the_scorer_raised() -> None:
    def broken() -> SlowScorer:
        raise OSError("no metric module")

    evaluator = Evaluator(broken, save_at_once, EvaluationConfig(), Metrics())
    with pytest.raises(OSError, match="no metric module"):
        await evaluator.start()
    await evaluator.stop()


async def test_offer_never_waits_and_drops_when_full() -> None:
    scorer, metrics = SlowScorer(), Metrics()
    evaluator = Evaluator(lambda: scorer, save_at_once, EvaluationConfig(max_num_queued=2), metrics)
    await evaluator.start()
    evaluator.offer(FINISHED, ["x"])
    await asyncio.to_thread(scorer.entered.wait, 5)
    evaluator.offer(FINISHED, ["x"])
    last = evaluator.offer(FINISHED, ["x"])
    start_s = time.perf_counter()
    with pytest.raises(ResourceExhaustedError):
        evaluator.offer(FINISHED, ["x"])
    assert time.perf_counter() - start_s < 0.05
    assert metrics.registry.get_sample_value("medley_evaluation_dropped_total", {"reason": "unscored"}) == 1
    scorer.gate.set()
    assert await asyncio.wrap_future(last) == {"rouge1": 50.0}
    await evaluator.stop()


async def test_stop_ends_what_is_queued_and_refuses_more() -> None:
    scorer = SlowScorer()
    evaluator = Evaluator(lambda: scorer, save_at_once, EvaluationConfig(max_num_queued=2), Metrics())
    await evaluator.start()
    running = evaluator.offer(FINISHED, ["x"])
    await asyncio.to_thread(scorer.entered.wait, 5)
    queued = [evaluator.offer(FINISHED, ["x"]) for _ in range(2)]
    stopping = asyncio.create_task(evaluator.stop())
    await asyncio.sleep(0.02)
    for scores in queued:
        with pytest.raises(UnavailableError):
            scores.result(timeout=1)
    with pytest.raises(UnavailableError):
        evaluator.offer(FINISHED, ["x"])
    scorer.gate.set()
    await stopping
    assert running.result() == {"rouge1": 50.0}


async def test_scorer_is_asked_for_the_metrics_of_the_request() -> None:
    scorer = SlowScorer()
    scorer.gate.set()
    evaluator = Evaluator(lambda: scorer, save_at_once, EvaluationConfig(warm_at_start=False), Metrics())
    await evaluator.start()
    await asyncio.wrap_future(evaluator.offer(replace(FINISHED, metrics=("bleu", "rouge")), ["reference"]))
    await asyncio.wrap_future(evaluator.offer(FINISHED, ["reference"]))
    await evaluator.stop()
    assert scorer.asked == [("bleu", "rouge"), ()]


async def test_evaluator_not_warmed_builds_its_scorer_for_the_first_text() -> None:
    built: list[SlowScorer] = []

    def build() -> SlowScorer:
        built.append(SlowScorer())
        built[-1].gate.set()
        return built[-1]

    evaluator = Evaluator(build, save_at_once, EvaluationConfig(warm_at_start=False), Metrics())
    await evaluator.start()
    assert not built
    for _ in range(2):
        assert await asyncio.wrap_future(evaluator.offer(FINISHED, ["reference"])) == {"rouge1": 50.0}
    await evaluator.stop()
    assert len(built) == 1


async def test_scores_are_handed_out_only_once_they_are_saved() -> None:
    scorer, saved = SlowScorer(), Future[None]()
    scorer.gate.set()
    evaluator = Evaluator(lambda: scorer, lambda *_: saved, EvaluationConfig(), Metrics())
    await evaluator.start()
    scores = evaluator.offer(FINISHED, ["x"])
    await asyncio.to_thread(scorer.entered.wait, 5)
    await asyncio.sleep(0.05)
    assert not scores.done()
    saved.set_exception(UnavailableError("no disk"))
    with pytest.raises(UnavailableError):
        scores.result(timeout=5)
    await evaluator.stop()


async def test_labels_beyond_the_bound_share_one_histogram() -> None:
    scorer, metrics = SlowScorer(), Metrics()
    scorer.gate.set()
    evaluator = Evaluator(lambda: scorer, save_at_once, EvaluationConfig(max_num_labels=1), metrics)
    await evaluator.start()
    for adapters in ("a:1", "b:1", "base", "c:1"):
        await asyncio.wrap_future(evaluator.offer(record_of(adapters=adapters), ["x"]))
    await evaluator.stop()
    counts = {label: num_observed(metrics, "rouge1", label) for label in ("a:1", "b:1", "base", "other")}
    assert counts == {"a:1": 1, "b:1": None, "base": 1, "other": 2}


async def test_figures_that_are_not_in_percent_are_in_no_histogram() -> None:
    class Ratios:
        def score(self, *_: object) -> dict[str, float]:
            return {"rougeL": 40.0, "length_ratio": 0.5, "nobody_knows": 3.0}

        def close(self) -> None:
            pass

    metrics = Metrics()
    evaluator = Evaluator(Ratios, save_at_once, EvaluationConfig(), metrics)
    await evaluator.start()
    scores = await asyncio.wrap_future(evaluator.offer(record_of(adapters="a:1"), ["x"]))
    await evaluator.stop()
    assert scores == {"rougeL": 40.0, "length_ratio": 0.5, "nobody_knows": 3.0}
    assert [num_observed(metrics, metric, "a:1") for metric in scores] == [1, None, None]


def num_observed(metrics: Metrics, metric: str, label: str) -> float | None:
    labels = {"metric": metric, "adapters": label}
    return metrics.registry.get_sample_value("medley_evaluation_score_count", labels)
