"""From a batch to the logits that its labels are about: the one place where the two kinds of base differ in training.

In every batch, labels_BL say what position l of the model's output has to give; -100 is left out of the loss. It does
not know optimisers.

Legend: B rows, L output positions, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Runs a model on a batch's tensors."""

    def __call__(self, model: torch.nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return logits_BLV that stand where labels_BL stand."""


def seq2seq_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Run an encoder-decoder: the encoder reads the prompt, the decoder the answer shifted by one.

    Raises:
        Nothing.
    """
    # The labels stay here: the model's own loss would be taken in bfloat16.
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits


def causal_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Run a decoder-only model on prompt and answer in one row; a soft prompt's own positions are cut off.

    Raises:
        Nothing.
    """
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, -labels.shape[1] :]
