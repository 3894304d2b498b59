"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum as an ``evaluate`` metric, computed by ``rouge_score``.

``evaluate.load`` copies this file into its cache and imports the copy, so it may import installed packages only and
nothing of Medley. Read :mod:`adapters.scoring` for how it is called.

Source:
    ROUGE: Lin 2004, https://aclanthology.org/W04-1013; scorer: https://pypi.org/project/rouge-score/0.1.2.
"""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

_TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
_CITATION = """\
@inproceedings{lin-2004-rouge, title = "{ROUGE}: A Package for Automatic Evaluation of Summaries",
  author = "Lin, Chin-Yew", booktitle = "Text Summarization Branches Out", year = "2004", pages = "74--81"}
"""
_DESCRIPTION = """\
Mean F-measure in percent of ROUGE-1/2/L/Lsum over examples, with the Porter stemmer. An example with several references
counts with its best reference, chosen for each ROUGE type by itself. For Lsum, lines are sentences.
"""
_INPUTS = """
Args:
    predictions: one text per example.
    references: one list of one or more texts per example.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: percent.
"""


class Rouge(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """The metric; holds one ``rouge_score`` scorer. Not safe for calls from two threads at once."""

    def _info(self) -> evaluate.MetricInfo:
        self._scorer = RougeScorer(_TYPES, use_stemmer=True)
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            reference_urls=["https://aclanthology.org/W04-1013"],
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        totals = dict.fromkeys(_TYPES, 0.0)
        for prediction, targets in zip(predictions, references, strict=True):
            best = self._scorer.score_multi(targets, prediction)
            for kind in _TYPES:
                totals[kind] += 100.0 * best[kind].fmeasure
        return {kind: total / len(predictions) for kind, total in totals.items()}
