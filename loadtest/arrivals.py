"""When requests are sent: a seeded Poisson process. Knows nothing of what is sent, nor of how long answers take."""

import random
from collections.abc import Iterator
from itertools import islice, takewhile


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield arrival times in seconds from the start of the run, without end.

    Gaps are independent and exponential with mean ``1 / rate``; the same seed gives the same times.

    Args:
        rate: Mean arrivals per second, above 0.
        seed: Seed of the process's own generator.

    Raises:
        ValueError: If the rate is not a positive number.
    """
    if not 0.0 < rate < float("inf"):
        raise ValueError("rate must be a positive number of requests per second")
    # Not for secrets; a private generator keeps the schedule independent of every other draw.
    generator = random.Random(f"arrivals-{seed}")  # noqa: S311
    now_s = 0.0
    while True:
        now_s += generator.expovariate(rate)
        yield now_s


def schedule(rate: float, seed: int, duration_s: float | None, num_requests: int | None) -> list[float]:
    """Return the arrival times of one run: those within a duration, or a fixed number, or both limits at once.

    Raises:
        ValueError: If neither limit is given, or the rate is not positive.
    """
    if duration_s is None and num_requests is None:
        raise ValueError("a run needs a duration or a number of requests")
    arrivals = poisson_arrivals(rate, seed)
    if duration_s is not None:
        arrivals = takewhile(lambda time_s: time_s < duration_s, arrivals)
    return list(islice(arrivals, num_requests))
