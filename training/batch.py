"""Tokenised pairs and how they become padded batches of like length. It knows ids only: no text, no model.

Legend: B rows, E input length, L output length; for a decoder-only model both are the length of prompt and answer
together, less one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100
MAX_SOURCE_TOKENS = 512
MAX_TARGET_TOKENS = 192


@dataclass(frozen=True)
class Pair:
    """One tokenised example; both sides end with the end-of-text id."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Batch:
    """Padded arrays of one step: input_ids_BE, attention_mask_BE and labels_BL.

    A label is what the model's output at that position has to give; -100 is left out of the loss.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens that count: unmasked input ids and labels of the loss."""
        return int(self.attention_mask.sum()) + int((self.labels != IGNORED_LABEL).sum())


def cut_source(ids: list[int]) -> list[int]:
    """Return at most 512 ids, keeping the end token.

    Raises:
        Nothing.
    """
    return ids if len(ids) <= MAX_SOURCE_TOKENS else [*ids[: MAX_SOURCE_TOKENS - 1], ids[-1]]


def collate(pairs: Sequence[Pair], pad_id: int) -> Batch:
    """Pad pairs to the longest of each side; labels are padded with -100, which the loss leaves out.

    Raises:
        ValueError: no pairs.
    """
    encoder, decoder = max(len(pair.source) for pair in pairs), max(len(pair.target) for pair in pairs)
    input_ids = np.full((len(pairs), encoder), pad_id, dtype=np.int64)
    labels = np.full((len(pairs), decoder), IGNORED_LABEL, dtype=np.int64)
    mask = np.zeros((len(pairs), encoder), dtype=np.int64)
    for row, pair in enumerate(pairs):
        input_ids[row, : len(pair.source)] = pair.source
        mask[row, : len(pair.source)] = 1
        labels[row, : len(pair.target)] = pair.target
    return Batch(input_ids, mask, labels)


def collate_causal(pairs: Sequence[Pair], pad_id: int) -> Batch:
    """Join prompt and answer of each pair in one row, padded on the right; labels are the answer alone.

    The row is shifted against its labels here, by one: position l reads token l and has to give token l + 1.

    Raises:
        ValueError: no pairs.
    """
    width = max(len(pair.source) + len(pair.target) for pair in pairs) - 1
    input_ids = np.full((len(pairs), width), pad_id, dtype=np.int64)
    labels = np.full((len(pairs), width), IGNORED_LABEL, dtype=np.int64)
    mask = np.zeros((len(pairs), width), dtype=np.int64)
    for row, pair in enumerate(pairs):
        read = [*pair.source, *pair.target][:-1]
        input_ids[row, : len(read)] = read
        mask[row, : len(read)] = 1
        labels[row, len(pair.source) - 1 : len(read)] = pair.target
    return Batch(input_ids, mask, labels)


def split_rows(batch: Batch, num_pieces: int) -> list[Batch]:
    """Cut a batch's rows into at most `num_pieces` pieces of about as many rows.

    Raises:
        Nothing.
    """
    arrays = (batch.input_ids, batch.attention_mask, batch.labels)
    pieces = min(num_pieces, len(batch.input_ids))
    return [Batch(*rows) for rows in zip(*(np.array_split(a, pieces) for a in arrays), strict=True)]


def length_batches(
    pairs: Sequence[Pair],
    max_tokens: int,
    limits: tuple[int, int],
    pad_id: int,
    seed: str,
    *,
    join: Callable[[Sequence[Pair], int], Batch] = collate,
) -> Iterator[Batch]:
    """Give batches of pairs of like length, at most `max_tokens` padded tokens each, in an order fixed by `seed`.

    Pairs longer than `limits` (source, target) are left out: cut them before, or accept their loss.

    Raises:
        Nothing.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    order = [pair for pair in pairs if len(pair.source) <= limits[0] and len(pair.target) <= limits[1]]
    rng.shuffle(order)
    order.sort(key=lambda pair: (len(pair.source) // 24, len(pair.target) // 4))
    groups: list[list[Pair]] = []
    widest = [0, 0]
    for pair in order:
        widest = [max(widest[0], len(pair.source)), max(widest[1], len(pair.target))]
        if not groups or (len(groups[-1]) + 1) * sum(widest) > max_tokens:
            groups.append([])
            widest = [len(pair.source), len(pair.target)]
        groups[-1].append(pair)
    rng.shuffle(groups)
    return (join(group, pad_id) for group in groups)
