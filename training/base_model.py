"""The frozen base that an adapter is trained on, from a local folder or the hub, and text made ready for it.

It knows the two kinds of base, encoder-decoder and decoder-only. It does not know methods, data sets or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import TaskType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.batch import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS, Pair
from training.data.adaptation import Case, training_pairs
from training.errors import TrainingConfigError

# What a model folder needs; the same weights often lie beside it in other frameworks' formats.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True)
class Base:
    """A base in memory.

    Attributes:
        model: Frozen, in evaluation mode.
        tokenizer: Its own.
        folder: Where its files lie.
        hub_id: Its id where it came from the hub, else None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    folder: Path
    hub_id: str | None

    @property
    def name(self) -> str:
        """What people call it: the hub id, or the folder's name."""
        return self.hub_id or self.folder.name

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def task_type(self) -> TaskType:
        """What PEFT calls its kind."""
        return TaskType.SEQ_2_SEQ_LM if self.is_encoder_decoder else TaskType.CAUSAL_LM

    @property
    def width(self) -> int:
        """Width of its embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def pairs(self, cases: Sequence[Case]) -> list[Pair]:
        """Tokenise every (prompt, reference) as this kind of base reads it.

        Raises:
            Nothing.
        """
        if self.is_encoder_decoder:
            return training_pairs(cases, self.tokenizer)
        return _causal_pairs(cases, self.tokenizer)


def base_folder(base: str) -> Path:
    """Return the folder of a base: `base` itself where there is one, else what the hub has under that id.

    Raises:
        TrainingConfigError: neither a folder nor an id that can be fetched.
    """
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=list(_HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TrainingConfigError(
            f"base {base!r} is neither a folder nor a model that the hub gives: {error}"
        ) from error


def load_base(base: str, *, quantization: object | None = None) -> Base:
    """Return a base in float32, or quantized, frozen.

    Args:
        base: folder or hub id.
        quantization: a transformers quantization config, or None.

    Raises:
        TrainingConfigError: there is no such base, or its files are no model with a tokenizer.
    """
    folder = base_folder(base)
    hub_id = None if folder == Path(base) else base
    options = {} if quantization is None else {"quantization_config": quantization}
    try:
        kind = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise TrainingConfigError(f"base {base!r} cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.requires_grad_(requires_grad=False), tokenizer, folder, hub_id)


def _causal_pairs(cases: Sequence[Case], tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
    """Tokenise prompts as they will be served and answers as their continuation, closed by the end token.

    A long prompt loses tokens after its first, so that the instruction's end stays before the answer; a long answer is
    cut and left without its end token.
    """
    texts = [(case.prompt, reference) for case in cases for reference in case.references]
    sources = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    targets = tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
    return [
        Pair(_cut_middle(source), [*target, tokenizer.eos_token_id][:MAX_TARGET_TOKENS])
        for source, target in zip(sources, targets, strict=True)
    ]


def _cut_middle(ids: list[int]) -> list[int]:
    return ids if len(ids) <= MAX_SOURCE_TOKENS else [ids[0], *ids[1 - MAX_SOURCE_TOKENS :]]
