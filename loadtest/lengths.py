"""How long texts and answers are: one small class for each law. Knows no texts.

The client has no tokenizer: texts are measured in words, answers in tokens. What a text is in tokens, the server says.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from loadtest.spec import spec

Length = Annotated[int, Field(ge=1, le=1_000_000)]


class LengthLaw(ABC):
    """A law of lengths."""

    @abstractmethod
    def draw(self, draws: np.random.Generator, count: int) -> list[int] | None:
        """Return lengths, or None if they are those of the data."""


@spec
class FromData(LengthLaw):
    """Texts as they are in the data; answers of as many tokens as their reference has words, the default if none."""

    kind: Literal["dataset"] = "dataset"

    def draw(self, draws: np.random.Generator, count: int) -> None:
        """Return None."""
        del draws, count


@spec
class Fixed(LengthLaw):
    """All alike."""

    value: Length
    kind: Literal["fixed"] = "fixed"

    def draw(self, draws: np.random.Generator, count: int) -> list[int]:
        """Return the value."""
        del draws
        return [self.value] * count


@spec
class _Between(LengthLaw):
    low: Length
    high: Length

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("'low' must not be above 'high'")
        return self


@spec
class UniformLength(_Between):
    """Whole numbers from ``low`` to ``high``, both included, all alike likely."""

    kind: Literal["uniform"] = "uniform"

    def draw(self, draws: np.random.Generator, count: int) -> list[int]:
        """Return lengths."""
        return draws.integers(self.low, self.high, count, endpoint=True).tolist()


@spec
class Lognormal(LengthLaw):
    """Lognormal with a median, rounded, and held within ``low`` and ``high``.

    Attributes:
        median: Half the lengths are below it.
        sigma: Standard deviation of the logarithm.
        low: Shorter ones become this.
        high: Longer ones become this.
    """

    median: Annotated[float, Field(gt=0, le=1e6)]
    sigma: Annotated[float, Field(gt=0, le=10)]
    kind: Literal["lognormal"] = "lognormal"
    low: Length = 1
    high: Length = 1_000_000

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError("'median' must be between 'low' and 'high'")
        return self

    def draw(self, draws: np.random.Generator, count: int) -> list[int]:
        """Return lengths."""
        drawn = draws.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(np.rint(drawn), self.low, self.high).astype(int).tolist()


AnyLength = Annotated[FromData | Fixed | UniformLength | Lognormal, Field(discriminator="kind")]
"""Any of them, told apart by ``kind``."""


@spec
class Lengths:
    """How long texts and answers are.

    Attributes:
        input: Of texts, in words.
        output: Of answers, in tokens: the most to generate; the server's default when None.
        exact: Answers have just that many tokens. Servers that speak the OpenAI protocol and know ``min_tokens`` and
            ``ignore_eos`` honour it.
    """

    input: AnyLength = FromData()
    output: AnyLength | None = None
    exact: bool = False
