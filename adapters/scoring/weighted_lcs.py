"""ROUGE-W: the longest common subsequence, where words in a row count more than words apart. Any thread may call.

Source:
    Lin 2004, section 3.3, https://aclanthology.org/W04-1013: the recurrence, the weight f(k) = k^a and its inverse.
"""

from collections.abc import Sequence

from adapters.scoring.overlap import Overlap

DEFAULT_EXPONENT = 1.2
"""ROUGE-1.5.5's usual weight."""


def rouge_w(prediction: Sequence[str], reference: Sequence[str], exponent: float = DEFAULT_EXPONENT) -> Overlap:
    """Return ROUGE-W of two lists of words.

    Args:
        prediction: The text's words.
        reference: The reference's words.
        exponent: The a of the weight f(k) = k^a of k matching words in a row; 1 makes it ROUGE-L.

    Raises:
        ValueError: If the exponent is below 1.
    """
    if exponent < 1.0:
        raise ValueError("ROUGE-W's exponent is 1 or more: else words in a row would count less than words apart")
    if not prediction or not reference:
        return Overlap.of(0.0, 0.0)
    total = _weighted_lcs(prediction, reference, exponent)
    precision = (total / len(prediction) ** exponent) ** (1.0 / exponent)
    recall = (total / len(reference) ** exponent) ** (1.0 / exponent)
    return Overlap.of(precision, recall)


def _weighted_lcs(first: Sequence[str], second: Sequence[str], exponent: float) -> float:
    """Return the weight of the subsequence the paper's recurrence finds, which takes every match it meets."""
    totals, runs = [0.0] * (len(second) + 1), [0] * (len(second) + 1)
    for word in first:
        totals_before, runs_before = totals, runs
        totals, runs = [0.0], [0]
        for column, other in enumerate(second, start=1):
            if word == other:
                run = runs_before[column - 1]
                gain = (run + 1) ** exponent - run**exponent
                totals.append(totals_before[column - 1] + gain)
                runs.append(run + 1)
            else:
                totals.append(max(totals_before[column], totals[column - 1]))
                runs.append(0)
    return totals[-1]
