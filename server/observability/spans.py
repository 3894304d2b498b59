"""What a trace is made of, and the face of whoever keeps traces; the library behind it is in :mod:`.tracing` alone.

A front end opens a :class:`Call` for each call it answers. Whoever works for the call finds it by :func:`current_call`
and hands in spans when they are over, made of times that were taken anyway, so that nothing is done while tokens are
generated. Where traces are off, the call is one that does nothing.

Attributes hold ids, digests, counts and codes, never texts, references or keys. Any thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

Value = str | bool | int | float | Sequence[str]
"""What an attribute may be."""
_NO_ATTRIBUTES: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Whether and where traces are sent.

    Attributes:
        endpoint: Address that takes OTLP over HTTP, as ``http://127.0.0.1:4318/v1/traces``; empty means no traces.
        sample_rate: Share of calls that are traced, from 0 to 1; callers who send a ``traceparent`` have decided
            themselves.
        service_name: What traces say they come from.
        max_num_queued: Most spans that wait to be sent; further ones are dropped and counted.
        send_every_s: Longest time a span waits to be sent with others.
        timeout_s: Longest time sending may take, at shutdown too.

    Raises:
        ValueError: If the rate is no share, or a bound is not positive.
    """

    endpoint: str = ""
    sample_rate: float = 1.0
    service_name: str = "medley"
    max_num_queued: int = 4096
    send_every_s: float = 1.0
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 <= self.sample_rate <= 1:
            raise ValueError("sample_rate must be from 0 to 1")
        if min(self.max_num_queued, self.send_every_s, self.timeout_s) <= 0:
            raise ValueError("max_num_queued, send_every_s and timeout_s must be positive")


@dataclass(frozen=True, slots=True)
class Stage:
    """A span that is over.

    Attributes:
        name: What was done, one of a few words.
        begun_s: Monotonic time.
        ended_s: Monotonic time.
        attributes: Facts of it.
        stages: What it consisted of.
        error: The error code, if it failed by the server's fault; empty otherwise.
    """

    name: str
    begun_s: float
    ended_s: float
    attributes: Mapping[str, Value] = field(default_factory=lambda: _NO_ATTRIBUTES)
    stages: tuple["Stage", ...] = ()
    error: str = ""


class Call(Protocol):
    """One call to a front end."""

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal, or empty where the call is not traced."""
        ...

    def name(self, name: str) -> None:
        """Give it another name than it began with."""
        ...

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add facts."""
        ...

    def failed(self, code: str) -> None:
        """Say that it failed by the server's fault."""
        ...

    def keep(self, stage: Stage) -> None:
        """Keep a stage, and those in it, as spans under this one."""
        ...


class _NoCall:
    trace_id = ""

    def name(self, name: str) -> None:
        del name

    def note(self, attributes: Mapping[str, Value]) -> None:
        del attributes

    def failed(self, code: str) -> None:
        del code

    def keep(self, stage: Stage) -> None:
        del stage


NO_CALL: Call = _NoCall()
"""Does nothing."""
_CALL: ContextVar[Call] = ContextVar("medley_call", default=NO_CALL)


def current_call() -> Call:
    """Return the call that this task, or the one that started it, works for."""
    return _CALL.get()


@contextmanager
def working_for(call: Call) -> Iterator[None]:
    """Make a call the current one within the block."""
    before = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(before)


class Tracer(Protocol):
    """Keeps traces."""

    @property
    def is_on(self) -> bool:
        """Whether calls are worth opening."""
        ...

    def open(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Call:
        """Begin a call.

        Args:
            name: Its name, one of a few.
            headers: The caller's, by names in lower case; the W3C's ``traceparent`` and ``tracestate`` are looked at.
            attributes: Facts known already.
        """
        ...

    def close(self, call: Call) -> None:
        """End a call."""
        ...

    def stop(self) -> None:
        """Send what waits, within the configured time; blocks for as long."""
        ...


class _NoTracer:
    is_on = False

    def open(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Call:
        del name, headers, attributes
        return NO_CALL

    def close(self, call: Call) -> None:
        del call

    def stop(self) -> None:
        pass


NO_TRACER: Tracer = _NoTracer()
"""Keeps nothing."""
