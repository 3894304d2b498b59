"""One open request of the vLLM engine, and what it holds. Knows no engine. Event loop's thread only."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from server.engine.base import EngineRequest
from server.engine.streams import OutputStream
from server.engine.vllm.residency import Place, Residency


class Row:
    """One open request.

    Attributes:
        request: What was asked for.
        key: Its name at the core.
        stream: Where its outputs go.
        submitted_s: Monotonic time.
        places: Where its adapters are resident; held until it ends.
        starting: Brings up its adapters and hands it to the core.
        timer: Ends it at its deadline.
        is_added: Whether the core may know it.
        is_running: Whether it had an output.
        is_over: Whether it had its terminal output.
    """

    __slots__ = (
        "is_added",
        "is_over",
        "is_running",
        "key",
        "places",
        "request",
        "starting",
        "stream",
        "submitted_s",
        "timer",
    )

    def __init__(self, request: EngineRequest, key: str, on_close: Callable[["Row"], None]) -> None:
        self.request, self.key = request, key
        self.stream = OutputStream(partial(on_close, self))
        self.submitted_s = time.monotonic()
        self.places: list[tuple[Residency[object], Place[object]]] = []
        self.starting: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.is_added = self.is_running = self.is_over = False

    def release(self) -> None:
        """Give back what it held."""
        for residency, place in self.places:
            residency.release(place)
        self.places.clear()
