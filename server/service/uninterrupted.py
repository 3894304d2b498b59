"""Work that is not left half way when its caller is cancelled. Event loop's thread only."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[None, None, T]) -> T:
    """Return what ``work`` gives; a cancellation meanwhile takes effect when it has ended, not before.

    Raises:
        asyncio.CancelledError: If the caller was cancelled meanwhile, however the work ended.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain of it
        raise cancelled
    return task.result()
