"""Requests that one call asks for at once: several prompts, or several answers to each. All of them or none.

Event loop's thread only.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from server.core.outputs import GenerationChunk, GenerationResult
from server.core.request import GenerationRequest
from server.core.sampling import MAX_SEED
from server.service.chunks import good_chunks
from server.service.generation import Generation

_NUM_CHUNKS_AHEAD = 4
_Indexed = tuple[int, GenerationChunk]


class Several:
    """Accepted requests, in the order in which they were asked for; whoever gets them must close them.

    Args:
        request_id: The call's.
        generations: The requests, at least one.
        opened: Closes each of them, and leaves what counts them.

    Attributes:
        request_id: The call's.
        generations: The requests.
        adapters: The versions that serve them.
    """

    def __init__(self, request_id: str, generations: Sequence[Generation], opened: AsyncExitStack) -> None:
        """Begin before the first output."""
        self.request_id = request_id
        self.generations = tuple(generations)
        self.adapters = self.generations[0].adapters
        self._opened = opened
        self._tasks: list[asyncio.Task[object]] = []

    async def chunks(self) -> AsyncIterator[_Indexed]:
        """Yield every request's chunks as they come, each behind the request's index; once only.

        Raises:
            MedleyError: In place of a terminal chunk that is a failure; close then.
        """
        if len(self.generations) == 1:
            async for chunk in good_chunks(self.generations[0]):
                yield 0, chunk
            return
        arrived: asyncio.Queue[_Indexed | Exception] = asyncio.Queue(_NUM_CHUNKS_AHEAD * len(self.generations))
        for index, generation in enumerate(self.generations):
            self._tasks.append(asyncio.create_task(_forward(index, generation, arrived)))
        num_open = len(self.generations)
        while num_open:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            num_open -= item[1].finish_reason is not None
            yield item

    async def results(self) -> tuple[GenerationResult, ...]:
        """Wait for all whole answers, and close.

        Raises:
            MedleyError: Of a request that failed; the others are given up.
        """
        try:
            if len(self.generations) == 1:
                return (await self.generations[0].result(),)
            waiting = [asyncio.create_task(generation.result()) for generation in self.generations]
            self._tasks.extend(waiting)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            return tuple(task.result() for task in waiting)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Give up what has not ended and release everything; safe to call again."""
        for task in self._tasks:
            task.cancel()
        try:
            if self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await self._opened.aclose()


def copies(request: GenerationRequest, count: int) -> tuple[GenerationRequest, ...]:
    """Return a request as often as answers to it are wanted; where it has a seed, each copy has the next one."""
    seed = request.sampling.seed
    if seed is None:
        return (request,) * count
    seeds = ((seed + index) % (MAX_SEED + 1) for index in range(count))
    return tuple(replace(request, sampling=replace(request.sampling, seed=each)) for each in seeds)


def named_apart(requests: Sequence[GenerationRequest]) -> tuple[GenerationRequest, ...]:
    """Return the requests of one call under ids of their own, ``<id>-0`` and so on; a single one keeps its id.

    All of them go by one routing key, so that one version answers the whole call.

    Raises:
        InvalidArgumentError: If an id gets too long.
    """
    if len(requests) == 1:
        return tuple(requests)
    return tuple(
        replace(
            request,
            request_id=f"{request.request_id}-{index}",
            routing_key=request.routing_key or request.request_id,
        )
        for index, request in enumerate(requests)
    )


async def _forward(index: int, generation: Generation, arrived: "asyncio.Queue[_Indexed | Exception]") -> None:
    try:
        async for chunk in good_chunks(generation):
            await arrived.put((index, chunk))
    except Exception as error:
        await arrived.put(error)
