"""Runs the HTTP application until it is cancelled. Knows no signals: the runtime owns them."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI

from server.access.tls import PLAIN_TEXT, TlsConfig
from server.api.http.patience import PatientProtocol, bound_unsent
from server.core.errors import FailedPreconditionError

_BACKLOG = 2048
# Longer than clients and load balancers keep idle connections (httpx 5 s, aiohttp 15 s, most balancers 60 s): whoever
# closes first must be the one who sends, else a request can meet a connection that is just being closed.
_KEEP_ALIVE_S = 75


async def serve_http(
    app: FastAPI,
    host: str,
    port: int,
    ready: Callable[[int], None],
    grace_s: int = 5,
    *,
    tls: TlsConfig = PLAIN_TEXT,
    stall_timeout_s: float = 60.0,
) -> None:
    """Serve until cancelled, then let open connections end for ``grace_s`` seconds.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        ready: Called once, with the port, when connections are taken.
        grace_s: Longest wait at the end.
        tls: Certificates.
        stall_timeout_s: Longest time in which a caller takes nothing of what waits for it.

    Raises:
        FailedPreconditionError: If the address cannot be listened on, or a certificate cannot be used.
    """
    context = tls.context() if tls.is_on else None
    with _listen(host, port) as listener:
        bound_unsent(listener)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=partial(PatientProtocol, stall_timeout_s=stall_timeout_s),  # type: ignore[arg-type]
            # Else anybody on this machine could say in a header to call from elsewhere.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=grace_s,
            timeout_keep_alive=_KEEP_ALIVE_S,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        server = _Server(config, lambda: ready(int(listener.getsockname()[1])))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise FailedPreconditionError(f"cannot listen on {host}:{port}: {error.strerror}") from error
