"""What is sent: which text with which adapters, drawn with a seed. Knows neither times nor protocols."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.examples import Example

BASE_LABEL = "base"


class MixError(ValueError):
    """An adapter mix that cannot be understood."""


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One kind of request in a mix.

    Attributes:
        adapters: Adapter references; empty means the base.
        weight: How often it is drawn, relative to the others, above 0.
    """

    adapters: tuple[str, ...]
    weight: float

    @property
    def label(self) -> str:
        """The adapters joined by ``+``, or ``base``: how reports call this kind of request."""
        return "+".join(self.adapters) or BASE_LABEL


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a run, decided before the run starts.

    Attributes:
        scheduled_s: When to send it, in seconds from the start of the run.
        text: The text to summarize.
        adapters: Adapter references; empty means the base.
        label: How reports call its kind.
    """

    scheduled_s: float
    text: str
    adapters: tuple[str, ...]
    label: str


def parse_mix(mix: str) -> tuple[MixEntry, ...]:
    """Parse ``base=1,dialogsum=2,dialogsum+dialogsum-prompt=1``; a weight left out is 1.

    Raises:
        MixError: If a name is empty or doubled, or a weight is not a positive number.
    """
    entries = tuple(_parse_entry(part.strip()) for part in mix.split(","))
    labels = [entry.label for entry in entries]
    if len(set(labels)) != len(labels):
        raise MixError(f"the mix names {next(name for name in labels if labels.count(name) > 1)!r} twice")
    return entries


def plan(
    times_s: Sequence[float], mix: Sequence[MixEntry], examples: Sequence[Example], seed: int
) -> list[PlannedRequest]:
    """Give every arrival time a text and adapters; the same seed gives the same plan.

    Args:
        times_s: Arrival times in seconds from the start of the run.
        mix: Kinds of request, at least one.
        examples: Texts to draw from, uniformly, at least one.
        seed: Seed of the draws.
    """
    generator = random.Random(f"workload-{seed}")  # noqa: S311 - not for secrets
    kinds = generator.choices(mix, weights=[entry.weight for entry in mix], k=len(times_s))
    texts = generator.choices(examples, k=len(times_s))
    return [
        PlannedRequest(scheduled_s=time_s, text=example.text, adapters=kind.adapters, label=kind.label)
        for time_s, kind, example in zip(times_s, kinds, texts, strict=True)
    ]


def _parse_entry(part: str) -> MixEntry:
    label, _, weight_text = part.partition("=")
    names = tuple(name.strip() for name in label.split("+"))
    if not all(names):
        raise MixError(f"the mix has an entry without a name: {part!r}")
    try:
        weight = float(weight_text or 1)
    except ValueError:
        raise MixError(f"the weight of {label!r} is not a number: {weight_text!r}") from None
    if not 0.0 < weight < float("inf"):
        raise MixError(f"the weight of {label!r} must be above 0")
    return MixEntry(adapters=() if names == (BASE_LABEL,) else names, weight=weight)
