"""Evaluation as a whole: its parts put together, started and stopped in order. Event loop's thread only."""

import asyncio
import time
from collections.abc import Callable

from adapters.scoring.signals import unscored_signals
from server.evaluation.config import EvaluationConfig
from server.evaluation.evaluator import Evaluator, Scorer
from server.evaluation.recorder import Recorder, Signals
from server.evaluation.reference_sets import ReferenceSets
from server.evaluation.reports import Reports
from server.evaluation.sampling import Sampler
from server.evaluation.store import EvaluationStore
from server.evaluation.upkeep import EvaluationUpkeep
from server.evaluation.window import FinishedWindow
from server.observability.metrics import Metrics


class EvaluationRoom:
    """The parts.

    Args:
        store: Where requests are kept; closed by :meth:`stop`.
        make_scorer: Builds the scorer, on the thread that scores.
        config: Limits.
        metrics: Where scores and drops are counted.
        signals: Makes an answer's signals of the answer and what it was made of.

    Attributes:
        store: The requests.
        sets: The reference sets.
        recorder: Writes.
        evaluator: Scores.
        sampler: Chooses what is kept.
        window: What ended lately.
        reports: The figures.
    """

    def __init__(
        self,
        store: EvaluationStore,
        make_scorer: Callable[[], Scorer],
        config: EvaluationConfig,
        metrics: Metrics,
        *,
        signals: Signals = unscored_signals,
    ) -> None:
        """Put the parts together; :meth:`start` starts them."""
        self.store = store
        self.sets = ReferenceSets(store)
        self.sampler = Sampler(config.sample_rate, config.sample_rates)
        self.window = FinishedWindow(config.max_num_finished, config.finished_ttl_s, time.monotonic)
        self.recorder = Recorder(
            store, self.sets, signals=signals, max_num_unwritten=config.max_num_unwritten, metrics=metrics
        )
        self.evaluator = Evaluator(make_scorer, self.recorder.save, config, metrics)
        self.reports = Reports(store, max_num_labels=config.max_num_labels, max_num_examined=config.max_num_examined)
        self._upkeep = EvaluationUpkeep(store, self.evaluator.offer_quietly, config)

    async def start(self) -> None:
        """Start all parts, and wait for the scorer if it is to be warm.

        Raises:
            Exception: Whatever building the scorer raised.
        """
        self.recorder.start(self.evaluator.offer_quietly)
        await self.evaluator.start()
        self._upkeep.start()

    async def stop(self) -> None:
        """Stop all parts, whatever was started; what waits to be written is written first."""
        await self._upkeep.stop()
        await self.evaluator.stop()
        await self.recorder.stop()
        await asyncio.to_thread(self.reports.close)
        await asyncio.to_thread(self.store.close)
