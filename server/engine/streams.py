"""The event loop's end of a request: outputs in order, one terminal, abort on early close.

Knows no rows. Event loop's thread only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from server.engine.base import EngineOutput


class OutputStream(AsyncIterator[EngineOutput]):
    """The outputs of one request; ends after its terminal output.

    It is bounded by ``max_new_tokens`` of its request: one output a token and the terminal one.

    Args:
        on_close: Called when the stream is closed before its terminal output was read.
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        self._outputs: deque[EngineOutput] = deque()
        self._arrived = asyncio.Event()
        self._is_over = False
        self._take: Callable[[EngineOutput], None] | None = None

    def put(self, output: EngineOutput) -> None:
        """Add an output."""
        if self._take is not None:
            self._take(output)
            return
        self._outputs.append(output)
        self._arrived.set()

    def forward(self, take: Callable[[EngineOutput], None]) -> None:
        """Give every output to ``take`` as it is put, instead of keeping it; then nobody reads the stream."""
        self._take = take
        while self._outputs:
            take(self._outputs.popleft())

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    @property
    def has_next(self) -> bool:
        """Whether the next output is there already."""
        return bool(self._outputs) and not self._is_over

    async def __anext__(self) -> EngineOutput:
        """Return the next output, waiting for it."""
        while not self._is_over and not self._outputs:
            self._arrived.clear()
            await self._arrived.wait()
        if self._is_over:
            raise StopAsyncIteration
        output = self._outputs.popleft()
        self._is_over = output.finish_reason is not None
        return output

    async def aclose(self) -> None:
        """Stop reading; aborts the request if it has not ended. Closing twice does nothing."""
        if not self._is_over:
            self._is_over = True
            self._arrived.set()
            self._on_close()
