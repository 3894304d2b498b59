"""One replica on Ray Serve: the whole service, called by the doors instead of through ports. Imports no Ray.

A call comes as plain values and its answer leaves as lists of plain values, as many as there are at once.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, TypeVar, cast

from server.api.grpc.in_process import Ended, InProcessServer, Metadata
from server.api.http.app import create_app
from server.core.errors import FailedPreconditionError, UnavailableError
from server.observability.logging import configure_logging
from server.runtime.container import Container
from server.runtime.data_dir import locked
from server.service.health import Phase
from server.settings import Settings

_MAX_NUM_DIRECTORIES = 1024
_T = TypeVar("_T")
Part = Sequence[bytes] | Awaitable[Sequence[bytes]]
"""Some messages of a call, or the promise of them where they are many bytes."""
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


class Replica:
    """The service and its engine.

    Args:
        settings: The settings as plain values.
    """

    # Ray Serve awaits it on the event loop that will serve the calls.
    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        """Load and open everything; the replica takes calls afterwards."""
        given = Settings(**settings)
        configure_logging(given.log)
        self._held = ExitStack()
        self._container: Container | None = None
        data_dir = self._held.enter_context(own_directory(given.data_dir))
        # Every address of the machine reaches a replica by the proxies, whatever host says.
        own = given.model_copy(update={"data_dir": data_dir, "host": "0.0.0.0"})  # noqa: S104
        self._container = Container(own)
        try:
            await self._container.start()
        except BaseException:
            await self._stop()
            raise
        services = self._container.services
        self._app = create_app(services, own.http)
        self._grpc = InProcessServer(services, own.grpc)
        services.health.enter(Phase.SERVING)

    async def describe(self) -> str:
        """Return what the base is called."""
        return self._running.info.base.model_id

    async def http(self, scope: Scope, parts: Sequence[Part]) -> AsyncIterator[list[Message]]:
        """Answer an HTTP request: the messages of ASGI, from the application of ``medley serve``.

        Args:
            scope: ASGI's, as far as it is plain values.
            parts: The body.
        """
        receive = _receiver(_together(parts))

        async def answer(put: Callable[[Message], None]) -> None:
            async def send(message: Message) -> None:
                put(message)
                await asyncio.sleep(0)

            await self._app(scope, receive, send)

        async with aclosing(as_they_come(answer)) as answers:
            async for messages in answers:
                yield messages

    async def grpc(
        self, name: str, parts: Sequence[Part], metadata: Metadata, peer: str
    ) -> AsyncIterator[list[bytes | Ended]]:
        """Answer a gRPC call: the messages' bytes, and last how it ended.

        Args:
            name: The method's short name.
            parts: The caller's messages.
            metadata: The caller's.
            peer: Who calls.
        """

        async def answer(put: Callable[[bytes | Ended], None]) -> None:
            put(await self._grpc.call(name, _together(parts), metadata, peer, put))

        async with aclosing(as_they_come(answer)) as answers:
            async for items in answers:
                yield items

    async def loads(self) -> tuple[int, int]:
        """Return the replica's process and how many adapters its engine has loaded so far."""
        return os.getpid(), self._running.stats.num_adapter_loads

    async def check_health(self) -> None:
        """Do nothing while the server lives; Ray Serve replaces the replica otherwise.

        Raises:
            UnavailableError: If only a restart helps.
        """
        if not self._running.services.health.live():
            raise UnavailableError("the engine died")

    # Ray Serve awaits it once the running calls have ended or their grace is over.
    async def __del__(self) -> None:
        """Let go of everything."""
        await self._stop()

    @property
    def _running(self) -> Container:
        assert self._container is not None
        return self._container

    async def _stop(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            await container.stop()
        self._held.close()


def own_directory(parent: Path) -> "_OwnDirectory":
    """Return a context with a data directory that no other replica on this machine has, the same ones again and again.

    Raises:
        FailedPreconditionError: On entering, if none can be had.
    """
    return _OwnDirectory(parent)


class _OwnDirectory:
    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._held = ExitStack()

    def __enter__(self) -> Path:
        fault: FailedPreconditionError | None = None
        for number in range(_MAX_NUM_DIRECTORIES):
            data_dir = self._parent / f"replica-{number}"
            try:
                self._held.enter_context(locked(data_dir))
            except FailedPreconditionError as error:
                fault = error
                if not (data_dir / "lock").exists():
                    break
            else:
                return data_dir
        assert fault is not None
        raise fault

    def __exit__(self, *_: object) -> None:
        self._held.close()


async def as_they_come(work: Callable[[Callable[[_T], None]], Awaitable[None]]) -> AsyncGenerator[list[_T], None]:
    """Yield what ``work`` puts, all that is there at once; cancel it when nobody wants more.

    Raises:
        Exception: What ``work`` raises, after everything it put.
    """
    waiting: deque[_T] = deque()
    wake = asyncio.Event()

    def put(item: _T) -> None:
        waiting.append(item)
        wake.set()

    working = asyncio.ensure_future(work(put))
    working.add_done_callback(lambda _: wake.set())
    try:
        while waiting or not working.done():
            await wake.wait()
            wake.clear()
            if waiting:
                items = list(waiting)
                waiting.clear()
                yield items
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _together(parts: Sequence[Part]) -> AsyncIterator[bytes]:
    for part in parts:
        for item in cast(Sequence[bytes], part) if isinstance(part, list) else await cast(Awaitable[list[bytes]], part):
            yield item


def _receiver(chunks: AsyncIterator[bytes]) -> Callable[[], Awaitable[Message]]:
    ended = False

    async def receive() -> Message:
        nonlocal ended
        if ended:
            # A caller who goes away is told by cancelling the call.
            await asyncio.Event().wait()
        chunk = await anext(chunks, None)
        ended = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": not ended}

    return receive
