"""FLAN's ways to put a task: options listed after it, worked examples before it, a rationale before the answer.

Also the way back: the answer out of a generated text. It does not know templates or files.

Source: Wei et al. 2021, arXiv:2109.01652 (options, exemplars); Wei et al. 2022, arXiv:2201.11903 (chain of thought);
Chung et al. 2022, arXiv:2210.11416 (both in one mixture).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ANSWER_CUE = "So the answer is"
THINK_CUE = "Give the reasoning before the answer."
_CUED = re.compile(r"the answer is:?\s*(.+?)\s*$", re.IGNORECASE | re.DOTALL)


def with_options(text: str, choices: Sequence[str]) -> str:
    """Return a task with its possible answers listed below it.

    Raises:
        Nothing.
    """
    return "\n".join([text, "", "OPTIONS:", *(f"- {choice}" for choice in choices)])


def with_shots(text: str, shots: Sequence[tuple[str, str]]) -> str:
    """Return a task after worked examples (input, target) of it.

    Raises:
        Nothing.
    """
    return "\n\n".join([*(f"{source}\n{target}" for source, target in shots), text])


def with_rationale(rationale: str, answer: str) -> str:
    """Return a chain-of-thought target, from which :func:`extract_answer` gets `answer` back.

    Raises:
        Nothing.
    """
    return f"{rationale.strip()} {ANSWER_CUE} {answer.strip().removesuffix('.')}."


def extract_answer(text: str, choices: Sequence[str] = ()) -> str:
    """Return the answer in a generated text: what follows the last "the answer is", else the whole text.

    With `choices`, the one that is meant, whatever its case and punctuation; the text as it is if none or several are.

    Raises:
        Nothing.
    """
    cued = text.lower().rfind("the answer is")
    match = _CUED.search(text, cued) if cued >= 0 else None
    answer = (match.group(1) if match else text).strip().removesuffix(".").strip()
    wanted = _plain(answer)
    equal = [choice for choice in choices if _plain(choice) == wanted]
    within = [choice for choice in choices if f" {_plain(choice)} " in f" {wanted} "]
    found = equal or within
    return found[0] if len(found) == 1 else answer


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
