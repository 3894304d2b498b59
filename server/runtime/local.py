"""One process, one engine, both front ends: from settings to a clean exit.

Readiness comes last on the way up and goes first on the way down. The first front end to end takes the other with it,
and its error is the one that is raised.
"""

import asyncio
import gc
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.api.grpc.server import create_server, serve_grpc
from server.api.http.app import create_app
from server.api.http.server import serve_http
from server.core.errors import FailedPreconditionError, UnavailableError
from server.runtime.container import Container
from server.runtime.data_dir import locked
from server.service.health import Phase
from server.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server listens, as ``host:port``."""

    http: str
    grpc: str


async def serve(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """Run a server until SIGTERM or SIGINT, then drain and return.

    Args:
        settings: What the operator set.
        announce: Called once, when the server is ready.

    Raises:
        MedleyError: If it cannot start, or a front end ended; the message says what to do.
        AdapterError: If the registry or the base's files cannot be read.
    """
    stop = asyncio.Event()
    with locked(settings.data_dir), setting_on_signals(stop), ready_file_while(settings.ready_file):
        container = Container(settings)
        try:
            if await _unless_stopped(container.start(), stop):
                await _serve_front_ends(container, settings, stop, announce)
        finally:
            await container.stop()
            gc.unfreeze()
    _log.info("stopped")


async def _serve_front_ends(
    container: Container, settings: Settings, stop: asyncio.Event, announce: Callable[[Addresses], None]
) -> None:
    ports: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    http_port, grpc_port = ports
    host, services = settings.host, container.services
    http = serve_http(
        create_app(services, settings.http),
        host,
        settings.port,
        http_port.set_result,
        settings.http.grace_s,
        tls=settings.tls,
        stall_timeout_s=settings.http.stall_timeout_s,
    )
    grpc = serve_grpc(
        create_server(services, settings.grpc),
        host,
        settings.grpc_port,
        grpc_port.set_result,
        settings.grpc.grace_s,
        tls=settings.tls,
    )

    async def open_doors() -> None:
        addresses = Addresses(f"{host}:{await http_port}", f"{host}:{await grpc_port}")
        # What is here now stays; to look through it for garbage would stop all answers for a tenth of a second.
        gc.collect()
        gc.freeze()
        services.health.enter(Phase.SERVING)
        _log.info(
            "ready", extra={"http": addresses.http, "grpc": addresses.grpc, "model": container.info.base.model_id}
        )
        if settings.ready_file is not None:
            write_ready_file(settings.ready_file, addresses)
        announce(addresses)

    async def close_doors() -> None:
        await stop.wait()
        _log.info("draining", extra={"grace_s": settings.drain_grace_s})
        await container.drain()
        for task in doors:
            task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            doors = [
                group.create_task(_endless(http, "HTTP"), name="http"),
                group.create_task(_endless(grpc, "gRPC"), name="grpc"),
                group.create_task(open_doors(), name="open-doors"),
            ]
            group.create_task(close_doors(), name="close-doors")
    except ExceptionGroup as errors:
        # The group cancels the others at the first error, so that one is the cause.
        raise errors.exceptions[0] from None


async def _endless(front_end: Awaitable[None], name: str) -> None:
    await front_end
    raise UnavailableError(f"the {name} front end ended")


async def _unless_stopped(starting: Awaitable[None], stop: asyncio.Event) -> bool:
    """Return whether ``starting`` came through; it is given up when ``stop`` is set first."""
    task = asyncio.ensure_future(starting)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        await task
        return True
    finally:
        task.cancel()
        stopping.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)


@contextmanager
def setting_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` at SIGTERM and SIGINT, on the main thread's event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def ready_file_while(path: Path | None) -> Iterator[None]:
    """Make sure that the file is there only while the server is."""
    if path is None:
        yield
        return
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_ready_file(path: Path, addresses: Addresses) -> None:
    """Say where the server listens, in one step.

    Raises:
        FailedPreconditionError: If the file cannot be written.
    """
    text = json.dumps({"http": addresses.http, "grpc": addresses.grpc, "pid": os.getpid()})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError as error:
        raise FailedPreconditionError(f"cannot write the ready file {path}: {error.strerror}") from error
