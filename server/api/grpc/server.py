"""Builds the gRPC server and runs it until it is cancelled. Knows no signals: the runtime owns them."""

import asyncio
from collections.abc import Callable
from typing import cast

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from server.access.tls import PLAIN_TEXT, TlsConfig
from server.api.grpc.access import AccessInterceptor
from server.api.grpc.config import GrpcConfig
from server.api.grpc.health import HealthServicer
from server.api.grpc.parsing import ParsingInterceptor
from server.api.grpc.services import SERVICE_NAMES, add_services
from server.api.grpc.tracing import TraceInterceptor
from server.core.errors import FailedPreconditionError
from server.service.door import Services

_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def create_server(services: Services, config: GrpcConfig) -> aio.Server:
    """Return the server with all its services, not yet listening. Call on the event loop's thread."""
    traced = (TraceInterceptor(services.tracer),) if services.tracer.is_on else ()
    server = aio.server(
        # Who may not call is not to learn either whether a message is well formed.
        interceptors=(*traced, AccessInterceptor(services.access), ParsingInterceptor()),
        options=(
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
            # Else a second server on the same port would quietly take half of the calls.
            ("grpc.so_reuseport", 0),
        ),
        maximum_concurrent_rpcs=config.max_concurrent_rpcs,
    )
    found = cast(aio.Server, _ByName(server))
    add_services(found, services, config)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(services.health, SERVICE_NAMES, config.health_poll_s), found
    )
    reflection.enable_server_reflection((*SERVICE_NAMES, _HEALTH_NAME, reflection.SERVICE_NAME), server)
    return server


async def serve_grpc(
    server: aio.Server,
    host: str,
    port: int,
    ready: Callable[[int], None],
    grace_s: float = 5.0,
    *,
    tls: TlsConfig = PLAIN_TEXT,
) -> None:
    """Serve until cancelled, then let open calls end for ``grace_s`` seconds.

    Args:
        server: From :func:`create_server`.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        ready: Called once, with the port, when calls are taken.
        grace_s: Longest wait at the end.
        tls: Certificates.

    Raises:
        FailedPreconditionError: If the address cannot be listened on, or a certificate cannot be used.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = _credentials(tls) if tls.is_on else None
    try:
        if credentials is None:
            bound_port = server.add_insecure_port(address)
        else:
            bound_port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise FailedPreconditionError(f"cannot listen on {address}") from error
    await server.start()
    try:
        ready(bound_port)
        await server.wait_for_termination()
    finally:
        await asyncio.shield(server.stop(grace_s))


class _ByName:
    """Has a server find methods by their names at each call.

    Of a method that is registered, the library keeps a call open, and looks at those of all methods at each call.
    """

    def __init__(self, server: aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Register nothing."""


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    files = tls.read()
    return grpc.ssl_server_credentials(
        [(files.key, files.cert)], files.client_ca, require_client_auth=files.client_ca is not None
    )
