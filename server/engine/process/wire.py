"""What an engine's process and the server's say to each other, and how it lies on the socket between them.

A message is a pickle with its length before it. Pickle, because both ends are ours: the socket is one of a pair that
the server makes and its child inherits, so that nobody else can write to it. What comes once a token is plain tuples of
integers, a fortieth of what a pickle of our own objects takes.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple, cast

from adapters.errors import AdapterError
from server.core.errors import MedleyError
from server.engine.base import EngineInfo, EngineOutput, EngineRequest, EngineStats, ResolvedAdapter
from server.engine.pace import Pace
from server.observability.durations import DurationCounts
from server.observability.logging import LogConfig

_LENGTH = struct.Struct("!I")

# Of the numbers in EngineStats: those that only grow, and those that go up and down.
COUNTERS = (
    "num_adapter_loads",
    "num_adapter_evictions",
    "num_adapter_host_hits",
    "num_steps",
    "num_generated_tokens",
)
LEVELS = ("num_running", "num_adapter_host_bytes")
counters_of: Callable[[EngineStats], tuple[int, ...]] = attrgetter(*COUNTERS)
levels_of: Callable[[EngineStats], tuple[int, ...]] = attrgetter(*LEVELS)

Packed = tuple[Any, ...]
"""An output: its request's key, its token ids and, where there is more, the rest."""


class Begin(NamedTuple):
    """To the process, first: how to log, and a pickle of what makes the engine."""

    log: LogConfig
    make: bytes


class Submit(NamedTuple):
    """To the process: a request, and the number that its outputs are to have."""

    key: int
    request: EngineRequest


class Abort(NamedTuple):
    """To the process: end a request."""

    key: int


class Call(NamedTuple):
    """To the process: call a method of the engine with an adapter, and answer once it is through."""

    number: int
    method: str
    adapter: ResolvedAdapter


class Unpin(NamedTuple):
    """To the process: let an adapter be evicted again."""

    digest: str


class Started(NamedTuple):
    """From the process, first: the engine has started."""

    info: EngineInfo


class Failed(NamedTuple):
    """From the process, instead: it could not be."""

    error: MedleyError | AdapterError


class Report(NamedTuple):
    """From the process: what happened since the last one.

    Attributes:
        counters: Values of :data:`COUNTERS`.
        levels: Values of :data:`LEVELS`.
        resident: Digests on the device, where they changed.
        load_times: Times of loads, where there were more.
        outputs: In order.
        answers: Numbers of calls that are through, and what they failed with.
        pace: How fast the engine works, where that changed.
    """

    counters: tuple[int, ...]
    levels: tuple[int, ...]
    resident: tuple[str, ...] | None
    load_times: DurationCounts | None
    outputs: list[Packed]
    answers: list[tuple[int, MedleyError | AdapterError | None]]
    pace: Pace | None = None


def is_tokens(output: EngineOutput) -> bool:
    """Return whether an output is nothing but tokens."""
    return not (
        output.finish_reason is not None or output.queue_s is not None or output.logprobs or output.prompt_logprobs
    )


def pack(key: int, output: EngineOutput) -> Packed:
    """Return an output as it is sent."""
    if is_tokens(output):
        return key, output.token_ids
    rest = (output.logprobs, output.prompt_logprobs, output.finish_reason, output.error, output.queue_s)
    return key, output.token_ids, rest


def unpack(packed: Packed) -> EngineOutput:
    """Return the output that was sent."""
    if len(packed) == 2:
        return EngineOutput(packed[1])
    return EngineOutput(packed[1], *packed[2])


def frame(message: object) -> bytes:
    """Return a message as it lies on the socket."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


def read_message(source: socket.socket) -> Any:
    """Return the next message of a blocking socket, and take nothing behind it.

    Raises:
        EOFError: If the other end is gone.
    """
    (length,) = _LENGTH.unpack(_read_exactly(source, _LENGTH.size))
    return pickle.loads(_read_exactly(source, length))  # noqa: S301


def _read_exactly(source: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        try:
            part = source.recv(length - len(parts))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError("the other end is gone")
        parts += part
    return bytes(parts)


class Wire(asyncio.Protocol):
    """One end of the socket. Event loop's thread.

    Args:
        received: Given each message.
        lost: Called once the other end is gone, or this one is closed.
    """

    def __init__(self, received: Callable[[Any], None], lost: Callable[[], None]) -> None:
        """Be connected to nothing yet; what is sent meanwhile waits."""
        self._received, self._lost = received, lost
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._unread = bytearray()

    async def connect(self, to: socket.socket) -> None:
        """Begin to read and write; the socket is this object's from now on."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=to)

    def send(self, message: object) -> None:
        """Send a message at once, or as soon as the socket takes it; after the end it goes nowhere."""
        data = frame(message)
        if self._transport is None:
            self._unsent.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close this end after what was sent has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close this end now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has waited."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.writelines(self._unsent)
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """Hand over every message that is whole."""
        unread = self._unread
        unread += data
        begin = 0
        while len(unread) >= (body := begin + _LENGTH.size):
            (length,) = _LENGTH.unpack_from(unread, begin)
            if len(unread) < body + length:
                break
            begin = body + length
            self._received(pickle.loads(memoryview(unread)[body:begin].tobytes()))  # noqa: S301
        del unread[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so; why makes no difference."""
        del exc
        self._lost()
