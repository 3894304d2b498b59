"""A generation's chunks as front ends stream them: failures are exceptions, not chunks."""

from collections.abc import AsyncIterator

from server.core.outputs import GenerationChunk
from server.service.generation import Generation


async def good_chunks(generation: Generation) -> AsyncIterator[GenerationChunk]:
    """Yield a generation's chunks; the last one ends a whole answer.

    Raises:
        MedleyError: In place of a terminal chunk that is a failure.
    """
    async for chunk in generation:
        if chunk.error is not None:
            raise chunk.error
        yield chunk
