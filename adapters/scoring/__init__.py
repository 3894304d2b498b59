"""How good a text is beside reference texts: one implementation for training (offline) and for the server (online).

:class:`RougeScorer` gives the four figures the server reports. What only an evaluation needs is imported from its own
module: :mod:`~adapters.scoring.rouge_family`, :mod:`~adapters.scoring.bleu`, :mod:`~adapters.scoring.surface`,
:mod:`~adapters.scoring.bootstrap`, and all of them for each example from :mod:`~adapters.scoring.suite`. Knows no
adapters, no models and no requests.
"""

from adapters.scoring.rouge import METRICS, RougeScorer

__all__ = ["METRICS", "RougeScorer"]
