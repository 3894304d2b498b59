"""Clients of a running server, one per protocol, with one face."""

from enum import StrEnum

from loadtest.clients.base import NO_CREDENTIALS, Credentials, MedleyClient


class WireProtocol(StrEnum):
    """The protocols a server speaks."""

    HTTP = "http"
    GRPC = "grpc"


def create_client(protocol: WireProtocol, address: str, credentials: Credentials = NO_CREDENTIALS) -> MedleyClient:
    """Return an unopened client.

    Args:
        protocol: Which protocol to speak.
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.

    Raises:
        ssl.SSLError: If the authority's certificate cannot be read.
    """
    # Each protocol's library is loaded only when it is spoken.
    if protocol is WireProtocol.HTTP:
        from loadtest.clients.http import HttpClient

        return HttpClient(address, credentials)
    from loadtest.clients.grpc import GrpcClient

    return GrpcClient(address, credentials)
