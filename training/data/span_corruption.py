"""T5's span corruption on token ids: hide random spans behind sentinels, predict them.

It knows ids only; it does not know text, tokenizers or models.

Source: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def corrupt_spans(
    rng: random.Random,
    ids: Sequence[int],
    sentinel_ids: Sequence[int],
    eos_id: int,
    *,
    noise_share: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[list[int], list[int]]:
    """Return (encoder ids, decoder target ids), both ending with `eos_id`.

    `ids` comes without an end token and needs at least two entries. Never uses more spans than there are sentinels,
    and never hides the first token, so that neither side is empty.

    Raises:
        ValueError: fewer than two ids.
    """
    if len(ids) < 2:
        raise ValueError("span corruption needs at least two tokens")
    num_noise = min(max(1, round(len(ids) * noise_share)), len(ids) - 1)
    num_kept = len(ids) - num_noise
    num_spans = min(max(1, round(num_noise / mean_span)), len(sentinel_ids), num_kept)
    noise_lengths = _split(rng, num_noise, num_spans)
    kept_lengths = _split(rng, num_kept, num_spans)
    source: list[int] = []
    target: list[int] = []
    position = 0
    for index, (kept, noise) in enumerate(zip(kept_lengths, noise_lengths, strict=True)):
        source += [*ids[position : position + kept], sentinel_ids[index]]
        position += kept
        target += [sentinel_ids[index], *ids[position : position + noise]]
        position += noise
    return [*source, eos_id], [*target, eos_id]


def restore_spans(source: Sequence[int], target: Sequence[int], sentinel_ids: Sequence[int], eos_id: int) -> list[int]:
    """Put the target's spans back into the source: the inverse of :func:`corrupt_spans`.

    Raises:
        Nothing.
    """
    sentinels = set(sentinel_ids)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in target:
        if token in sentinels:
            current = spans.setdefault(token, [])
        elif token != eos_id:
            current.append(token)
    restored: list[int] = []
    for token in source:
        if token in sentinels:
            restored += spans[token]
        elif token != eos_id:
            restored.append(token)
    return restored


def _split(rng: random.Random, total: int, parts: int) -> list[int]:
    """Cut `total` into `parts` positive lengths at random places."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
