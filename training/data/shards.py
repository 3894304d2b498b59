"""Tokenised shards of the mixture, made once and kept on disk as safetensors (flat int32 ids and row ends).

It does not know models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast

from training.batch import Pair
from training.data.mixture import Mixture, span_chunk
from training.data.span_corruption import corrupt_spans
from training.data.tokenizer import NUM_SENTINELS, sentinel

_MIN_CHUNK = 8


def make_shard(
    mixture: Mixture, tokenizer: PreTrainedTokenizerFast, seed: str, num_examples: int, span_share: float
) -> list[Pair]:
    """Draw and tokenise one shard; the same seed always gives the same pairs.

    Raises:
        Nothing.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    sentinel_ids = [tokenizer.convert_tokens_to_ids(sentinel(i)) for i in range(NUM_SENTINELS)]
    pairs: list[Pair] = []
    texts: list[str] = []
    for _ in range(num_examples):
        if rng.random() < span_share:
            chunk = span_chunk(rng, tokenizer, mixture.passage(rng))
            if len(chunk) >= _MIN_CHUNK:
                pairs.append(Pair(*corrupt_spans(rng, chunk, sentinel_ids, tokenizer.eos_token_id)))
        else:
            example = mixture.draw(rng)
            texts += [example.source, example.target]
    ids = tokenizer(texts)["input_ids"] if texts else []
    return pairs + [Pair(source, target) for source, target in zip(ids[::2], ids[1::2], strict=True)]


def save_shard(pairs: Sequence[Pair], path: Path) -> None:
    """Write a shard; a killed run never leaves half of one.

    Raises:
        OSError: the folder cannot be written.
    """
    arrays: dict[str, NDArray[np.int32]] = {}
    for side in ("source", "target"):
        rows = [getattr(pair, side) for pair in pairs]
        arrays[f"{side}_ids"] = np.fromiter((i for row in rows for i in row), dtype=np.int32)
        arrays[f"{side}_ends"] = np.cumsum([len(row) for row in rows], dtype=np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(arrays, partial)
    partial.replace(path)


def load_shard(path: Path) -> list[Pair]:
    """Read a shard written by :func:`save_shard`.

    Raises:
        FileNotFoundError: there is none.
    """
    arrays = load_file(path)
    sides = [np.split(arrays[f"{side}_ids"], arrays[f"{side}_ends"][:-1]) for side in ("source", "target")]
    return [Pair(source.tolist(), target.tolist()) for source, target in zip(*sides, strict=True)]
