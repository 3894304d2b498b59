"""What is sent and when, all decided before the run: times, adapters, texts and lengths put together.

Knows no protocol. Every choice has a generator of its own, so that changing one of them leaves the others as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.arrivals import Gamma, OpenLoop, generator, schedule, until
from loadtest.examples import Example
from loadtest.lengths import Lengths
from loadtest.popularity import MixEntry, Popularity, shares


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a run, decided before the run starts.

    Attributes:
        scheduled_s: When to send it, in seconds from the start of the run.
        text: The text to summarize.
        adapters: Adapter references; empty means the base.
        label: How reports call its kind.
        max_new_tokens: Most tokens to generate; the server's default when None.
        exact: Generate just that many.
    """

    scheduled_s: float
    text: str
    adapters: tuple[str, ...]
    label: str
    max_new_tokens: int | None = None
    exact: bool = False


AS_IN_THE_DATA = Lengths()


def plan(
    times_s: Sequence[float],
    kinds: Sequence[MixEntry],
    examples: Sequence[Example],
    seed: int,
    lengths: Lengths = AS_IN_THE_DATA,
) -> list[PlannedRequest]:
    """Give every arrival time a text, adapters and lengths; the same seed gives the same plan.

    Args:
        times_s: Arrival times in seconds from the start of the run.
        kinds: What each asks for, as many as times.
        examples: Texts to draw from, uniformly, at least one.
        seed: Seed of the draws.
        lengths: Of texts and answers.
    """
    count = len(times_s)
    texts = generator("texts", seed).integers(len(examples), size=count).tolist()
    words = lengths.input.draw(generator("input", seed), count)
    tokens = None if lengths.output is None else lengths.output.draw(generator("output", seed), count)
    planned = []
    for index, (time_s, kind, start) in enumerate(zip(times_s, kinds, texts, strict=True)):
        text = examples[start].text if words is None else _text_of(examples, start, words[index])
        request = PlannedRequest(time_s, text, kind.adapters, kind.label, exact=lengths.exact)
        if lengths.output is not None:
            most = _reference_length(examples[start]) if tokens is None else tokens[index]
            request = replace(request, max_new_tokens=most)
        planned.append(request)
    return planned


def arrivals_and_kinds(
    arrivals: OpenLoop,
    popularity: Popularity,
    seed: int,
    *,
    duration_s: float | None,
    num_requests: int | None,
    warm_up_s: float = 0.0,
) -> tuple[list[float], list[MixEntry]]:
    """Return when requests arrive and what each asks for; limits and warm-up as of :func:`schedule`.

    Raises:
        ValueError: If there is no limit and the arrivals have no end, or a trace cannot be used.
    """
    if not isinstance(arrivals, Gamma) or not arrivals.per_adapter:
        times_s = schedule(arrivals, seed, duration_s, num_requests, warm_up_s)
        return times_s, popularity.draw(generator("adapters", seed), len(times_s))
    if duration_s is None:
        raise ValueError("arrivals per adapter need a duration")
    entries = popularity.entries()
    processes = [
        (arrivals.times_s(generator("arrivals", seed, index), share), entry)
        for index, (share, entry) in enumerate(zip(shares(entries), entries, strict=True))
    ]
    arriving = [
        (time_s, entry)
        for times_s, entry in processes
        for time_s in until((time_s - warm_up_s for time_s in times_s), duration_s, None)
    ]
    arriving.sort(key=lambda one: one[0])
    times_s = list(until((time_s for time_s, _ in arriving), None, num_requests))
    return times_s, [entry for _, entry in arriving[: len(times_s)]]


def _text_of(examples: Sequence[Example], start: int, num_words: int) -> str:
    """Return so many words, from one text on through those after it."""
    words: list[str] = []
    index = start
    while len(words) < num_words:
        words += examples[index % len(examples)].text.split()
        index += 1
    return " ".join(words[:num_words])


def _reference_length(example: Example) -> int | None:
    return len(example.summaries[0].split()) if example.summaries else None
