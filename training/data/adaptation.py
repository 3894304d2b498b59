"""The examples an adapter learns from and is measured on, as prompts and answers, and as token ids.

It does not know files or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.batch import MAX_TARGET_TOKENS, Pair, cut_source
from training.data.report import MixtureReport


class Tokenizes(Protocol):
    """A tokenizer, as far as it matters here."""

    def __call__(self, text: list[str]) -> Mapping[str, list[list[int]]]:
        """Return `input_ids`, the end token last."""


@dataclass(frozen=True)
class Case:
    """One example as the model reads it, with every reference answer.

    `source` is the bare text it is about, `origin` its `file:line`, `task` the name of its source. Where `choices` are
    offered, :func:`training.data.instructions.extract_answer` finds the one an answer means.
    """

    source: str
    prompt: str
    references: tuple[str, ...]
    origin: str = ""
    task: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Cases to learn from, to choose the checkpoint by, and to measure the result on; disjoint by their source text."""

    train: list[Case]
    held_out: list[Case]
    validation: list[Case]
    report: MixtureReport


def training_pairs(cases: Sequence[Case], tokenizer: Tokenizes) -> list[Pair]:
    """Tokenise every (prompt, reference); long prompts are cut to what the model reads, long answers to 192 tokens.

    A cut answer ends without the end token: the model learns its beginning, and not that it would end there.

    Raises:
        Nothing.
    """
    texts = [text for case in cases for reference in case.references for text in (case.prompt, reference)]
    ids = tokenizer(texts)["input_ids"] if texts else []
    return [
        Pair(cut_source(source), target[:MAX_TARGET_TOKENS]) for source, target in zip(ids[::2], ids[1::2], strict=True)
    ]


def pairs_by_task(cases: Sequence[Case], pairs: Sequence[Pair]) -> dict[str, list[list[Pair]]]:
    """Return for each task, case by case, the pairs of its references, so that a mixture can draw whole cases.

    Args:
        cases: What the pairs were made of.
        pairs: One for each reference of each case, in order.

    Raises:
        Nothing.
    """
    left = iter(pairs)
    found: dict[str, list[list[Pair]]] = {}
    for case in cases:
        found.setdefault(case.task, []).append([next(left) for _ in case.references])
    return found
