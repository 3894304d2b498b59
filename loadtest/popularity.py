"""Which adapters requests ask for: one small class for each law. Knows neither times nor texts.

Adapters are named, or there is a number of them called by a pattern. ``base`` stands for none, ``a+b`` for two at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from loadtest.spec import FilePath, spec
from loadtest.traces import TraceFileError, read_trace

BASE_LABEL = "base"
_PLACE = "{}"


class MixError(ValueError):
    """An adapter mix that cannot be understood."""


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One kind of request.

    Attributes:
        adapters: Adapter references; empty means the base.
        weight: How often it is drawn, relative to the others, above 0.
    """

    adapters: tuple[str, ...]
    weight: float = 1.0

    @property
    def label(self) -> str:
        """The adapters joined by ``+``, or ``base``: how reports call this kind of request."""
        return "+".join(self.adapters) or BASE_LABEL


class Popularity(ABC):
    """A law of popularity."""

    @abstractmethod
    def entries(self) -> tuple[MixEntry, ...]:
        """Return every kind of request once, with its weight.

        Raises:
            TraceFileError: If there is a trace and it cannot be used.
        """

    def draw(self, draws: np.random.Generator, count: int) -> list[MixEntry]:
        """Return what each of a number of requests asks for."""
        entries = self.entries()
        chosen = draws.choice(len(entries), size=count, p=shares(entries))
        return [entries[index] for index in chosen]


def shares(entries: tuple[MixEntry, ...]) -> np.ndarray:
    """Return the probability of each kind."""
    weights = np.array([entry.weight for entry in entries])
    return weights / weights.sum()


def names_of(kinds: Sequence[MixEntry]) -> list[str]:
    """Return the adapters' names, each once, without what is said of versions and aliases."""
    references = (reference for kind in kinds for reference in kind.adapters)
    return list(dict.fromkeys(reference.partition(":")[0].partition("@")[0] for reference in references))


@spec
class _Several(Popularity):
    names: tuple[str, ...] = ()
    number: Annotated[int, Field(ge=1, le=100_000)] | None = None
    pattern: str = "adapter-{}"

    @field_validator("pattern")
    @classmethod
    def _has_one_place(cls, pattern: str) -> str:
        if pattern.count(_PLACE) != 1:
            raise ValueError("must hold {} once, where the number goes")
        return pattern

    @model_validator(mode="after")
    def _names_or_number(self) -> Self:
        if bool(self.names) == (self.number is not None):
            raise ValueError("give either 'names' or a 'number' of adapters")
        self._adapters()
        return self

    def _adapters(self) -> list[tuple[str, ...]]:
        names = self.names or [self.pattern.replace(_PLACE, str(index)) for index in range(self.number or 0)]
        return [_references(name) for name in names]


@spec
class Uniform(_Several):
    """All alike."""

    kind: Literal["uniform"] = "uniform"

    def entries(self) -> tuple[MixEntry, ...]:
        """Return the adapters with weight 1."""
        return tuple(MixEntry(adapters) for adapters in self._adapters())


@spec
class Zipf(_Several):
    """The i-th adapter's share goes with ``i ** -s``, the first being the most popular."""

    kind: Literal["zipf"] = "zipf"
    s: Annotated[float, Field(ge=0, le=20)] = 1.0

    def entries(self) -> tuple[MixEntry, ...]:
        """Return the adapters, most popular first."""
        return tuple(MixEntry(adapters, rank**-self.s) for rank, adapters in enumerate(self._adapters(), 1))


@spec
class OneHot(Popularity):
    """Every request asks for the same."""

    name: str
    kind: Literal["one_hot"] = "one_hot"

    def entries(self) -> tuple[MixEntry, ...]:
        """Return the one kind."""
        return (MixEntry(_references(self.name)),)


@spec
class Weighted(Popularity):
    """Kinds by weights written out: ``base=1,dialogsum=2,dialogsum+dialogsum-prompt=1``."""

    mix: str = BASE_LABEL
    kind: Literal["mix"] = "mix"

    @field_validator("mix")
    @classmethod
    def _is_a_mix(cls, mix: str) -> str:
        parse_mix(mix)
        return mix

    def entries(self) -> tuple[MixEntry, ...]:
        """Return the kinds as written."""
        return parse_mix(self.mix)


@spec
class TracePopularity(Popularity):
    """What the requests of a trace asked for, in its order, over again when it ends; see :mod:`loadtest.traces`."""

    file: FilePath
    kind: Literal["trace"] = "trace"

    def entries(self) -> tuple[MixEntry, ...]:
        """Return every kind of the trace, weighted by how often it is there."""
        lines = self._lines()
        return tuple(MixEntry(adapters, lines.count(adapters)) for adapters in dict.fromkeys(lines))

    def draw(self, draws: np.random.Generator, count: int) -> list[MixEntry]:
        """Return the trace's own order."""
        del draws
        return [MixEntry(adapters) for adapters in islice(cycle(self._lines()), count)]

    def _lines(self) -> list[tuple[str, ...]]:
        lines = [line.adapters for line in read_trace(self.file)]
        known = [adapters for adapters in lines if adapters is not None]
        if len(known) < len(lines):
            raise TraceFileError(f"{self.file}: popularity needs 'adapters' in every line")
        return known


AnyPopularity = Annotated[Uniform | Zipf | OneHot | Weighted | TracePopularity, Field(discriminator="kind")]
"""Any of them, told apart by ``kind``."""


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


def _parse_entry(part: str) -> MixEntry:
    label, _, weight_text = part.partition("=")
    adapters = _references(label)
    try:
        weight = float(weight_text or 1)
    except ValueError:
        raise MixError(f"the weight of {label!r} is not a number: {weight_text!r}") from None
    if not 0.0 < weight < float("inf"):
        raise MixError(f"the weight of {label!r} must be above 0")
    return MixEntry(adapters, weight)


def _references(label: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in label.split("+"))
    if not all(names):
        raise MixError(f"there is an entry without a name: {label!r}")
    return () if names == (BASE_LABEL,) else names
