"""ROUGE-1/2/L/Lsum as one figure each: what the server reports online and the cards quote.

The metric itself is the ``evaluate`` module in ``adapters/metrics/rouge``, loaded from that local path: nothing is
fetched, and ``evaluate`` writes only into its own cache folder (``HF_HOME``). Knows no adapters and no requests.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from adapters.scoring.overlap import require_examples

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ROUGE_FILE = Path(__file__).parents[1] / "metrics" / "rouge" / "rouge.py"


class RougeScorer:
    """F-measures in percent of ROUGE-1/2/L/Lsum as ``rouge_score`` defines them, with the Porter stemmer.

    Making one takes seconds (importing ``evaluate`` is slow): make it once, off the event loop. Methods may be called
    from any thread; calls run one at a time, and each takes milliseconds of CPU: never call one from the event loop.
    """

    def __init__(self) -> None:
        """Load the metric module."""
        import evaluate

        # In memory, so that processes sharing one cache folder never meet in a file.
        self._metric = evaluate.load(str(_ROUGE_FILE), keep_in_memory=True)
        self._lock = threading.Lock()

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """Return each of :data:`METRICS` in percent, for the best reference of each metric.

        Raises:
            ValueError: If there are no references.
        """
        return self.score_corpus([prediction], [references])

    def score_corpus(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return the mean over examples of each of :data:`METRICS`, in percent.

        Args:
            predictions: One text per example.
            references: One or more texts per example.

        Raises:
            ValueError: If there are no examples, an example has no references, or the lengths differ.
        """
        require_examples(predictions, references)
        with self._lock:
            scores = self._metric.compute(
                predictions=list(predictions), references=[list(several) for several in references]
            )
        return {metric: float(scores[metric]) for metric in METRICS}
