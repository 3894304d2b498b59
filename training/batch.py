"""Tokenised pairs and how they become padded batches of like length. It knows ids only: no text, no model.

Legend: B rows, E encoder length, L decoder length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
    """Padded arrays of one step: input_ids_BE, attention_mask_BE and labels_BL (padding is -100)."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens that count: unmasked encoder ids and unpadded labels."""
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


def length_batches(
    pairs: Sequence[Pair], max_tokens: int, limits: tuple[int, int], pad_id: int, seed: str
) -> Iterator[Batch]:
    """Give batches of pairs of like length, at most `max_tokens` padded tokens each, in an order fixed by `seed`.

    Pairs longer than `limits` (encoder, decoder) are left out: cut them before, or accept their loss.

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
    return (collate(group, pad_id) for group in groups)
