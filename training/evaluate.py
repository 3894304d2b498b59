"""Greedy generation over a list of prompts, and the LEAD-3 baseline. It knows no data set and does not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.batch import cut_source


class Generates(Protocol):
    """What a transformers model and a PEFT model have in common here."""

    def generate(self, **kwargs: object) -> Tensor:
        """Return generated ids, the start token first."""


def generate_texts(
    model: Generates,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new_tokens: int,
    rows: int = 24,
) -> list[str]:
    """Return the greedy answer to each prompt, in the order of the prompts.

    Prompts over 512 tokens are cut at the end of the text; no repetition penalty of any kind is applied.

    Raises:
        Nothing.
    """
    ids = [cut_source(row) for row in tokenizer(list(prompts))["input_ids"]]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [""] * len(ids)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        for index, text in zip(chosen, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            answers[index] = text.strip()
    return answers


def lead_3(dialogue: str) -> str:
    """Return the first three lines: the baseline any summarizer has to beat.

    Raises:
        Nothing.
    """
    lines = [line for line in dialogue.split("\n") if line.strip()]
    return " ".join(lines[:3])
