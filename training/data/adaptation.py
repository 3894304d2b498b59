"""The examples an adapter learns from: prompts rendered by the server's own renderer, split without chance.

A part of the training split is held out to choose the checkpoint; the validation split is only ever measured. It does
not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from adapters.prompting import render
from training.batch import MAX_TARGET_TOKENS, Pair, cut_source
from training.config import AdapterData
from training.data.sources import SummaryRecord, is_held_out, read_summaries
from training.errors import TrainingConfigError, TrainingDataError


@dataclass(frozen=True)
class Case:
    """One dialogue as the model reads it, with every reference answer."""

    dialogue: str
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class AdaptationSplits:
    """Cases to learn from, to choose the checkpoint by, and to measure the result on."""

    train: list[Case]
    held_out: list[Case]
    validation: list[Case]


def load_splits(data: AdapterData, prompt_template: str, data_dir: Path) -> AdaptationSplits:
    """Read a data set and split its training part.

    Raises:
        TrainingConfigError: `data.target` is neither "summary" nor "topic".
        TrainingDataError: the file is missing, or a part comes out empty.
        PromptTemplateError: a bad template.
    """
    records = read_summaries(data_dir, data.dataset)
    train = [record for record in records if record.split == "train"]
    chosen = [record for record in train if is_held_out(record.dialogue, data.held_out_percent, salt=data.dataset)]
    # By dialogue, not by record: a dialogue that occurs twice must not be on both sides.
    hidden = {record.dialogue for record in chosen}

    def cases(part: Sequence[SummaryRecord]) -> list[Case]:
        return [Case(r.dialogue, render(prompt_template, r.dialogue), _answers(r, data.target)) for r in part]

    splits = AdaptationSplits(
        train=cases([record for record in train if record.dialogue not in hidden]),
        held_out=cases(chosen[: data.num_held_out]),
        validation=cases([record for record in records if record.split == "validation"]),
    )
    if not (splits.train and splits.held_out and splits.validation):
        raise TrainingDataError(f"{data.dataset} is too small to train on, choose by and validate on")
    return splits


def training_pairs(cases: Sequence[Case], tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
    """Tokenise every (prompt, reference); long dialogues are cut to what the model reads, long answers to 192 tokens.

    A cut answer ends without the end token: the model learns its beginning, and not that it would end there.

    Raises:
        Nothing.
    """
    texts = [text for case in cases for reference in case.references for text in (case.prompt, reference)]
    ids = tokenizer(texts)["input_ids"]
    return [
        Pair(cut_source(source), target[:MAX_TARGET_TOKENS]) for source, target in zip(ids[::2], ids[1::2], strict=True)
    ]


def _answers(record: SummaryRecord, target: str) -> tuple[str, ...]:
    if target == "summary":
        return record.summaries
    if target == "topic":
        return record.topics
    raise TrainingConfigError(f"data.target is 'summary' or 'topic', not {target!r}")
