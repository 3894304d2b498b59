"""Seeded request traces: when a request comes, with which adapter, how long it is and how long its answer.

A trace is decided before anything runs, so that every side is fed the very same one. Knows no engine and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.arrivals import Poisson, schedule

# Ids below are special tokens in T5's vocabularies.
_FIRST_ORDINARY_TOKEN = 3


@dataclass(frozen=True, slots=True)
class TraceShape:
    """What the requests of a trace look like.

    Attributes:
        num_adapters: Adapters they are spread over.
        zipf_exponent: Adapter i (from 0) is drawn in proportion to 1 / (i + 1) ** exponent; 0 draws all alike.
        prompt_tokens: Fewest and most encoder tokens of a request; uniform, both included.
        new_tokens: Fewest and most tokens of its answer; uniform, both included.
        vocab_size: Token ids stay below.
    """

    num_adapters: int = 32
    zipf_exponent: float = 1.0
    prompt_tokens: tuple[int, int] = (8, 512)
    new_tokens: tuple[int, int] = (8, 128)
    vocab_size: int = 32128


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrival_s: Seconds from the start of the trace.
        adapter: Index of its adapter.
        prompt_token_ids: Encoder input.
        num_new_tokens: Length of its answer, neither more nor less.
    """

    arrival_s: float
    adapter: int
    prompt_token_ids: tuple[int, ...]
    num_new_tokens: int


def make_trace(shape: TraceShape, *, rate: float, num_requests: int, seed: int) -> tuple[TraceRequest, ...]:
    """Draw a trace of Poisson arrivals.

    The same seed at another rate gives the same requests in the same order, with all times scaled; a longer trace
    begins with the shorter one.

    Args:
        shape: What the requests look like.
        rate: Mean arrivals per second, above 0.
        num_requests: How many.
        seed: Seed of every draw.

    Raises:
        ValueError: If the rate is not a positive number.
    """
    arrivals_s = schedule(Poisson(rate=rate), seed, None, num_requests)
    popularity = zipf(shape.num_adapters, shape.zipf_exponent)
    generator = np.random.default_rng(seed)
    return tuple(_draw(shape, arrival_s, popularity, generator) for arrival_s in arrivals_s)


def all_at_once(trace: Sequence[TraceRequest]) -> tuple[TraceRequest, ...]:
    """Return the trace with every request there from the start."""
    return tuple(replace(request, arrival_s=0.0) for request in trace)


def zipf(count: int, exponent: float) -> np.ndarray:
    """Return the probabilities of ``count`` things under Zipf's law, most popular first."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    return weights / weights.sum()


def _draw(shape: TraceShape, arrival_s: float, popularity: np.ndarray, generator: np.random.Generator) -> TraceRequest:
    adapter = int(generator.choice(shape.num_adapters, p=popularity))
    num_prompt_tokens = int(generator.integers(*shape.prompt_tokens, endpoint=True))
    num_new_tokens = int(generator.integers(*shape.new_tokens, endpoint=True))
    prompt = generator.integers(_FIRST_ORDINARY_TOKEN, shape.vocab_size, num_prompt_tokens)
    return TraceRequest(arrival_s, adapter, tuple(prompt.tolist()), num_new_tokens)
