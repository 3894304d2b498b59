"""Greedy generation over a list of prompts, and the LEAD-3 baseline. It knows no data set and does not train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from training.batch import cut_source
from training.peft_warnings import without_false_alarms


class Generates(Protocol):
    """What a transformers model and a PEFT model have in common here."""

    config: PretrainedConfig
    device: torch.device

    def generate(self, **kwargs: object) -> Tensor:
        """Return generated ids, after the start token or, of a decoder-only model, after the prompt."""


def generate_texts(
    model: Generates,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new_tokens: int,
    max_rows: int = 24,
) -> list[str]:
    """Return the greedy answer to each prompt, in the order of the prompts.

    Prompts over 512 tokens are cut at the end of the text; no repetition penalty of any kind is applied.

    Raises:
        Nothing.
    """
    ids = [cut_source(row) for row in tokenizer(list(prompts))["input_ids"]]
    answers = [""] * len(ids)
    # A decoder-only model goes on from the last position, which must be the prompt's last token.
    side = "right" if model.config.is_encoder_decoder else "left"
    for chosen in _batches([len(row) for row in ids], max_rows, one_length=_is_thrown_by_padding(model)):
        rows = {"input_ids": [ids[i] for i in chosen]}
        batch = tokenizer.pad(rows, padding_side=side, return_tensors="pt").to(model.device)
        with torch.inference_mode(), without_false_alarms():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        if not model.config.is_encoder_decoder:
            out = out[:, batch["input_ids"].shape[1] :]
        for index, text in zip(chosen, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            answers[index] = text.strip()
    return answers


def _batches(lengths: Sequence[int], max_rows: int, *, one_length: bool) -> Iterator[list[int]]:
    """Give the places of texts of like length, or of one length, at most `max_rows` at a time."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for _, group in groupby(order, key=(lambda i: lengths[i]) if one_length else lambda _: 0):
        places = list(group)
        yield from (places[start : start + max_rows] for start in range(0, len(places), max_rows))


def _is_thrown_by_padding(model: Generates) -> bool:
    """Say whether padding would stand between a soft prompt and the text, as on the left of a decoder-only row."""
    peft_config = getattr(model, "active_peft_config", None)
    return not model.config.is_encoder_decoder and peft_config is not None and peft_config.is_prompt_learning


def lead_3(dialogue: str) -> str:
    """Return the first three lines: the baseline any summarizer has to beat.

    Raises:
        Nothing.
    """
    lines = [line for line in dialogue.split("\n") if line.strip()]
    return " ".join(lines[:3])
