"""When requests are sent: one small class for each process. Knows nothing of what is sent, nor of its answers.

Every class but :class:`ClosedLoop` is open loop: times are fixed before the run, whatever the answers. Draws come from
numpy's generators; the same seed gives the same times.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, pairwise, repeat
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from loadtest.spec import FilePath, Rate, Seconds, spec
from loadtest.traces import TraceFileError, read_trace

_BLOCK = 1024


def generator(purpose: str, seed: int, *more: int) -> np.random.Generator:
    """Return a generator that is independent of those for other purposes under the same seed.

    Args:
        purpose: What the draws are for.
        seed: The run's seed, 0 or more.
        more: Numbers of whatever there are several of, such as an adapter's.
    """
    return np.random.default_rng([seed, *more, *purpose.encode()])


class OpenLoop(ABC):
    """Arrivals whose times do not depend on answers."""

    @abstractmethod
    def times_s(self, draws: np.random.Generator) -> Iterator[float]:
        """Yield arrival times in seconds from the start, not falling.

        Raises:
            TraceFileError: If there is a trace and it cannot be used.
        """


@spec
class Constant(OpenLoop):
    """One arrival every ``1 / rate`` seconds."""

    rate: Rate = 4.0
    kind: Literal["constant"] = "constant"

    def times_s(self, draws: np.random.Generator) -> Iterator[float]:
        """Yield ``1 / rate``, ``2 / rate``, …, without end."""
        del draws
        number = 0
        while True:
            number += 1
            yield number / self.rate


@spec
class Poisson(OpenLoop):
    """Independent exponential gaps with mean ``1 / rate``."""

    rate: Rate = 4.0
    kind: Literal["poisson"] = "poisson"

    def times_s(self, draws: np.random.Generator) -> Iterator[float]:
        """Yield times without end."""
        return accumulate(_blocks(lambda: draws.exponential(1 / self.rate, _BLOCK)))


@spec
class Gamma(OpenLoop):
    """Independent Gamma gaps with mean ``1 / rate`` and coefficient of variation ``cv``.

    Shape ``1 / cv²``, scale ``cv² / rate``: 1 is Poisson, above it arrivals come in bursts, below it more evenly.

    Attributes:
        rate: Mean arrivals per second, of all adapters together.
        cv: Standard deviation of the gaps over their mean.
        per_adapter: Every adapter has a process of its own, with its share of the rate; else one process for all.
    """

    rate: Rate = 4.0
    kind: Literal["gamma"] = "gamma"
    cv: Annotated[float, Field(gt=0, le=100)] = 1.0
    per_adapter: bool = False

    def times_s(self, draws: np.random.Generator, share: float = 1.0) -> Iterator[float]:
        """Yield times without end.

        Args:
            draws: Where the draws come from.
            share: Of the rate, above 0: one adapter's.
        """
        shape = self.cv**-2
        scale = self.cv**2 / (self.rate * share)
        return accumulate(_blocks(lambda: draws.gamma(shape, scale, _BLOCK)))


@spec
class Trace(OpenLoop):
    """Times read from a file; see :mod:`loadtest.traces`.

    Attributes:
        file: JSON lines with ``at_s``.
        speed: How many times as fast as it was.
    """

    file: FilePath
    kind: Literal["trace"] = "trace"
    speed: Annotated[float, Field(gt=0, le=1e4)] = 1.0

    def times_s(self, draws: np.random.Generator) -> Iterator[float]:
        """Yield the trace's times, once."""
        del draws
        times = [line.at_s for line in read_trace(self.file)]
        known = [time for time in times if time is not None]
        if len(known) < len(times):
            raise TraceFileError(f"{self.file}: arrivals need 'at_s' in every line")
        if any(later < earlier for earlier, later in pairwise(known)):
            raise TraceFileError(f"{self.file}: 'at_s' must not fall from one line to the next")
        return (time / self.speed for time in known)


@spec
class ClosedLoop:
    """A fixed number of users, each of whom waits for the answer and thinks before asking again.

    A slow server meets fewer requests, so latency under load is told too low: for comparing, not for capacity.

    Attributes:
        num_users: Users at once.
        think_s: Mean of the exponential pause between an answer and the next request.
    """

    kind: Literal["closed"] = "closed"
    num_users: Annotated[int, Field(ge=1, le=100_000)] = 8
    think_s: Seconds = 0.0


Arrivals = Annotated[Constant | Poisson | Gamma | Trace | ClosedLoop, Field(discriminator="kind")]
"""Any of them, told apart by ``kind``."""


def schedule(
    arrivals: OpenLoop, seed: int, duration_s: float | None, num_requests: int | None, warm_up_s: float = 0.0
) -> list[float]:
    """Return the arrival times of one run: those within a duration, or a fixed number, or both limits at once.

    Args:
        arrivals: The process.
        seed: Of its draws.
        duration_s: Of the measured part.
        num_requests: In the measured part.
        warm_up_s: Seconds before the measured part; times in it are negative.

    Raises:
        ValueError: If neither limit is given and the arrivals have no end, or a trace cannot be used.
    """
    if duration_s is None and num_requests is None and not isinstance(arrivals, Trace):
        raise ValueError("a run needs a duration or a number of requests")
    times_s = (time_s - warm_up_s for time_s in arrivals.times_s(generator("arrivals", seed)))
    return list(until(times_s, duration_s, num_requests))


def until(times_s: Iterable[float], duration_s: float | None, num_requests: int | None) -> Iterator[float]:
    """Yield times up to whichever limit comes first; negative ones do not count as requests."""
    num_measured = 0
    for time_s in times_s:
        num_measured += time_s >= 0
        is_over = duration_s is not None and time_s >= duration_s
        if is_over or (num_requests is not None and num_measured > num_requests):
            return
        yield time_s


def _blocks(draw: Callable[[], np.ndarray]) -> Iterator[float]:
    return chain.from_iterable(draw().tolist() for _ in repeat(None))
