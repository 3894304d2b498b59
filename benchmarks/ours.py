"""Our side of every benchmark: the native engine, driven through its public face, its outputs timed as they arrive."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from server.engine.base import EngineRequest
from server.engine.native.engine import NativeEngine, NativeEngineConfig


@dataclass(frozen=True, slots=True)
class ServedRow:
    """What one request got.

    Attributes:
        token_ids: Its tokens.
        arrival_s: Per token, seconds from the request's submission until it arrived.
        start_s: The submission, on ``time.perf_counter``'s clock.
    """

    token_ids: tuple[int, ...]
    arrival_s: tuple[float, ...]
    start_s: float


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """What requests submitted at once got, in their order.

    Attributes:
        rows: One per request.
        duration_s: From the first submission to the last token.
    """

    rows: tuple[ServedRow, ...]
    duration_s: float

    def step_s(self) -> float:
        """Return the median time between two tokens of a row while every row decodes, in seconds."""
        first_s = max(row.start_s + row.arrival_s[0] for row in self.rows)
        last_s = min(row.start_s + row.arrival_s[-1] for row in self.rows)
        return statistics.median(
            later_s - earlier_s
            for row in self.rows
            for earlier_s, later_s in pairwise(row.arrival_s)
            if first_s <= row.start_s + earlier_s and row.start_s + later_s <= last_s
        )


async def serve_row(engine: NativeEngine, request: EngineRequest) -> ServedRow:
    """Serve one request to its end.

    Raises:
        MedleyError: If the engine refuses the request or fails it.
    """
    start_s = time.perf_counter()
    token_ids: list[int] = []
    arrival_s: list[float] = []
    async for output in engine.submit(request):
        if output.error is not None:
            raise output.error
        now_s = time.perf_counter() - start_s
        token_ids += output.token_ids
        arrival_s += [now_s] * len(output.token_ids)
    return ServedRow(tuple(token_ids), tuple(arrival_s), start_s)


async def serve_batch(engine: NativeEngine, requests: Sequence[EngineRequest]) -> ServedBatch:
    """Serve requests submitted all at once.

    Raises:
        MedleyError: If the engine refuses a request or fails it.
    """
    start_s = time.perf_counter()
    rows = await asyncio.gather(*(serve_row(engine, request) for request in requests))
    return ServedBatch(tuple(rows), time.perf_counter() - start_s)


class OurEngine:
    """A native engine for callers without an event loop; a context manager that starts and stops it.

    Args:
        config: Model, place and limits.
    """

    def __init__(self, config: NativeEngineConfig) -> None:
        self._loop = asyncio.Runner()
        self._engine = NativeEngine(config)

    def __enter__(self) -> Self:
        """Load the base and begin stepping."""
        self._loop.run(self._engine.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop stepping."""
        self._loop.run(self._engine.stop())
        self._loop.close()

    def serve(self, requests: Sequence[EngineRequest]) -> ServedBatch:
        """Serve requests submitted all at once; see :func:`serve_batch`."""
        return self._loop.run(serve_batch(self._engine, requests))
