"""How often each source of a mixture is drawn, and a seeded stream that keeps to it.

It does not know what it mixes: examples, pairs, anything that stands in a list per source.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from training.data.config import MixtureConfig
from training.errors import TrainingConfigError

ItemT = TypeVar("ItemT")


def mixture_rates(sizes: Mapping[str, int], config: MixtureConfig) -> dict[str, float]:
    """Return each source's share of the stream; the shares add up to 1.

    Capped and examples-proportional: r_m = min(e_m, K) / Σ min(e_n, K), then r_m^(1/T), renormalised.

    Source: Raffel et al. 2019, arXiv:1910.10683, section 3.5.2.

    Raises:
        TrainingConfigError: a negative cap or a temperature that is not above 0.
    """
    if config.cap < 0 or config.temperature <= 0:
        raise TrainingConfigError("data.mixture.cap must not be negative, and its temperature must be above 0")
    capped = {name: _capped(size, config.cap) for name, size in sizes.items()}
    total = sum(capped.values())
    weights = {name: (size / total) ** (1.0 / config.temperature) if size else 0.0 for name, size in capped.items()}
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def mixture_counts(sizes: Mapping[str, int], config: MixtureConfig) -> dict[str, int]:
    """Return how many items of each source an epoch holds: its rate of Σ min(e_n, K), no more than one away from it.

    Raises:
        TrainingConfigError: as :func:`mixture_rates`.
    """
    rates = mixture_rates(sizes, config)
    total = sum(_capped(size, config.cap) for size in sizes.values())
    counts = {name: int(rate * total) for name, rate in rates.items()}
    by_remainder = sorted(rates, key=lambda name: counts[name] - rates[name] * total)
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def mixture_epoch(groups: Mapping[str, Sequence[ItemT]], config: MixtureConfig, epoch: int) -> list[ItemT]:
    """Return the items of one epoch, source by source, each in its own order: whoever makes batches shuffles.

    A source comes round in seeded order, each item once before any comes again, and goes on where the epoch before
    stopped, so that a capped source shows all of its items over the epochs. One epoch depends on the groups, the
    configuration and its number alone. A single source without a cap is returned whole.

    Raises:
        TrainingConfigError: as :func:`mixture_rates`.
    """
    counts = mixture_counts({name: len(items) for name, items in groups.items()}, config)
    return [
        items[index]
        for name, items in groups.items()
        for index in sorted(_turns(len(items), counts[name] * epoch, counts[name], f"{config.seed}/{name}"))
    ]


def _capped(size: int, cap: int) -> int:
    return min(size, cap) if cap else size


def _turns(size: int, start: int, count: int, seed: str) -> list[int]:
    """Return `count` indices from position `start` of an endless row of seeded permutations of `size`."""
    found: list[int] = []
    while len(found) < count:
        turn, offset = divmod(start + len(found), size)
        order = list(range(size))
        random.Random(f"{seed}/{turn}").shuffle(order)  # noqa: S311 - not for secrets
        found += order[offset : offset + count - len(found)]
    return found
