"""Scores finished requests on one worker thread behind a bounded queue; what does not fit is dropped and counted.

Nothing here makes a request wait: offering is a ``put_nowait``, and whoever wants the scores awaits a future with a
bound of its own. Texts and references go into the scorer and nowhere else; logs carry scores, ids and digests.

:meth:`Evaluator.offer` and :meth:`Evaluator.evaluations` may be called from any thread.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from server.core.errors import InternalError, ResourceExhaustedError, UnavailableError
from server.evaluation.tally import AdapterEvaluation, Tally
from server.evaluation.window import FinishedRequest
from server.observability.metrics import Metrics

_log = logging.getLogger(__name__)


class Scorer(Protocol):
    """Compares a text with its references; used from the worker thread only."""

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        """Return figures by name: those of the named metrics; of the scorer's own choice if none is named.

        A metric that needs the source gives none where it is empty, as it is wherever the prompt was not kept.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """Limits of scoring.

    Attributes:
        max_num_queued: Most requests that wait to be scored.
        max_num_finished: Most finished requests remembered for references that come later.
        finished_ttl_s: Seconds a finished request is remembered.
        max_num_labels: Most adapter combinations with figures of their own; the rest share ``other``.
        warm_at_start: Whether the server is ready only once the scorer is, which takes seconds; else the first text to
            be scored waits for it, and a server nobody asks for scores never loads it.
    """

    max_num_queued: int = 256
    max_num_finished: int = 4096
    finished_ttl_s: float = 900.0
    max_num_labels: int = 128
    warm_at_start: bool = True


@dataclass(frozen=True, slots=True)
class _Job:
    finished: FinishedRequest
    references: tuple[str, ...]
    scores: "Future[Mapping[str, float]]"


class Evaluator:
    """One worker thread with one scorer.

    Args:
        make_scorer: Builds the scorer, on the worker thread.
        config: Limits.
        metrics: Where scores and drops are counted.
    """

    def __init__(self, make_scorer: Callable[[], Scorer], config: EvaluationConfig, metrics: Metrics) -> None:
        """Start nothing; :meth:`start` does."""
        self._make_scorer = make_scorer
        self._warm_at_start = config.warm_at_start
        self._metrics = metrics
        self._tally = Tally(config.max_num_labels)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(config.max_num_queued)
        self._made_scorer: Scorer | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    async def start(self) -> None:
        """Start the worker and, if it is to be warm, wait until its scorer has scored once.

        Raises:
            Exception: Whatever building the scorer raised.
        """
        warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(warm,), name="evaluator", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(warm)

    def offer(self, finished: FinishedRequest, references: Sequence[str]) -> "Future[Mapping[str, float]]":
        """Queue a request for scoring and return its scores to come.

        Raises:
            ResourceExhaustedError: If the queue is full; the drop is counted.
            UnavailableError: If the evaluator has stopped.
        """
        if self._stopping.is_set():
            raise UnavailableError("the server is stopping")
        job = _Job(finished, tuple(references), Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._metrics.evaluation_dropped.inc()
            raise ResourceExhaustedError("too many texts wait to be scored; try again later") from None
        return job.scores

    def evaluations(self) -> tuple[AdapterEvaluation, ...]:
        """Return the figures gathered so far, one entry per adapter combination."""
        return self._tally.evaluations()

    async def stop(self) -> None:
        """Stop after the request being scored; the queued ones end with UNAVAILABLE."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._cancel_queued()
        self._jobs.put_nowait(None)
        await asyncio.to_thread(thread.join)
        self._cancel_queued()

    def _cancel_queued(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.scores.set_running_or_notify_cancel():
                job.scores.set_exception(UnavailableError("the server is stopping"))

    def _work(self, warm: "Future[None]") -> None:
        try:
            if self._warm_at_start:
                self._scorer().score("a warm engine", ["a warm scorer"])
        except Exception as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while (job := self._jobs.get()) is not None:
            # From here on the future cannot be cancelled under us by whoever gave up waiting for it.
            if job.scores.set_running_or_notify_cancel():
                self._score(job)

    def _scorer(self) -> Scorer:
        if self._made_scorer is None:
            self._made_scorer = self._make_scorer()
        return self._made_scorer

    def _score(self, job: _Job) -> None:
        try:
            scores = self._scorer().score(job.finished.text, job.references, job.finished.metrics)
        except Exception:
            _log.exception("scoring failed", extra={"request_id": job.finished.request_id})
            job.scores.set_exception(InternalError("scoring failed"))
            return
        self._publish(job.finished, scores)
        job.scores.set_result(scores)

    def _publish(self, finished: FinishedRequest, scores: Mapping[str, float]) -> None:
        label = self._tally.add(finished.adapters, scores)
        for metric, score in scores.items():
            self._metrics.rouge.labels(metric=metric, adapters=label).observe(score)
        fields = {"request_id": finished.request_id, "adapters": finished.adapters, "digests": list(finished.digests)}
        rounded = {metric: round(score, 2) for metric, score in scores.items()}
        _log.info("request scored", extra={**fields, "scores": rounded})
