"""Scores finished requests on one worker thread behind a bounded queue; what does not fit is dropped and counted.

Nothing here makes a request wait: offering is a ``put_nowait``, and whoever wants the scores awaits a future with a
bound of its own. Scores are handed out when they are on disk. Texts and references go into the scorer and to whoever
saves; logs carry scores, ids and digests.

:meth:`Evaluator.offer` may be called from any thread.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from adapters.scoring.plugins import percent_figures
from server.core.errors import InternalError, MedleyError, ResourceExhaustedError, UnavailableError
from server.evaluation.config import EvaluationConfig
from server.evaluation.records import Record
from server.observability.adapter_labels import BASE, AdapterLabels
from server.observability.metrics import Metrics

_log = logging.getLogger(__name__)

Save = Callable[[Record, Sequence[str], Mapping[str, float]], "Future[None]"]


class Scorer(Protocol):
    """Compares a text with its references; used from the worker thread only, which closes it at the end."""

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        """Return figures by name: those of the named metrics; of the scorer's own choice if none is named.

        A metric that needs the source gives none where it is empty, as it is wherever the prompt was not kept.
        """
        ...

    def close(self) -> None:
        """Let go of what scoring needs; nothing is scored after."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    record: Record
    references: tuple[str, ...]
    scores: "Future[Mapping[str, float]]"


class Evaluator:
    """One worker thread with one scorer.

    Args:
        make_scorer: Builds the scorer, on the worker thread.
        save: Has scores written and returns a future of that; must not wait.
        config: Limits.
        metrics: Where scores and drops are counted.
    """

    def __init__(
        self, make_scorer: Callable[[], Scorer], save: Save, config: EvaluationConfig, metrics: Metrics
    ) -> None:
        """Start nothing; :meth:`start` does."""
        self._make_scorer = make_scorer
        self._save = save
        self._warm_at_start = config.warm_at_start
        self._metrics = metrics
        self._labels = AdapterLabels(config.max_num_labels)
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

    def offer(self, record: Record, references: Sequence[str]) -> "Future[Mapping[str, float]]":
        """Queue a request for scoring and return its scores to come, which are on disk then.

        Raises:
            ResourceExhaustedError: If the queue is full; the drop is counted.
            UnavailableError: If the evaluator has stopped.
        """
        if self._stopping.is_set():
            raise UnavailableError("the server is stopping")
        job = _Job(record, tuple(references), Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._metrics.evaluation_dropped.labels(reason="unscored").inc()
            raise ResourceExhaustedError("too many texts wait to be scored; try again later") from None
        return job.scores

    def offer_quietly(self, record: Record, references: Sequence[str]) -> None:
        """Queue a request whose scores nobody waits for; what cannot be queued is logged."""
        try:
            self.offer(record, references)
        except MedleyError as error:
            _log.warning("not scored: %s", error.message, extra={"request_id": record.outcome.request_id})

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
            self._score_all(warm)
        finally:
            if self._made_scorer is not None:
                self._made_scorer.close()

    def _score_all(self, warm: "Future[None]") -> None:
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
            scores = self._scorer().score(job.record.outcome.text, job.references, job.record.metrics)
            saved = self._save(job.record, job.references, scores)
        except MedleyError as error:
            job.scores.set_exception(error)
            return
        except Exception:
            _log.exception("scoring failed", extra={"request_id": job.record.outcome.request_id})
            job.scores.set_exception(InternalError("scoring failed"))
            return
        self._publish(job.record, scores)
        saved.add_done_callback(lambda done: _hand_out(job, scores, done))

    def _publish(self, record: Record, scores: Mapping[str, float]) -> None:
        outcome = record.outcome
        label = self._labels.label(() if outcome.adapters == BASE else outcome.adapters.split("+"))
        for metric in scores.keys() & percent_figures():
            self._metrics.evaluation_score.labels(metric=metric, adapters=label).observe(scores[metric])
        fields = {"request_id": outcome.request_id, "adapters": outcome.adapters, "digests": list(outcome.digests)}
        rounded = {metric: round(score, 2) for metric, score in scores.items()}
        _log.debug("request scored", extra={**fields, "scores": rounded})


def _hand_out(job: _Job, scores: Mapping[str, float], saved: "Future[None]") -> None:
    if (error := saved.exception()) is not None:
        job.scores.set_exception(error)
    else:
        job.scores.set_result(scores)
