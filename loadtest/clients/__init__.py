"""Clients of a running server, one per protocol, with one face."""

from enum import StrEnum

from loadtest.clients.base import MedleyClient


class WireProtocol(StrEnum):
    """The protocols a server speaks."""

    HTTP = "http"
    GRPC = "grpc"


def create_client(protocol: WireProtocol, address: str) -> MedleyClient:
    """Return an unopened client.

    Args:
        protocol: Which protocol to speak.
        address: ``host:port``.
    """
    # Each protocol's library is loaded only when it is spoken.
    if protocol is WireProtocol.HTTP:
        from loadtest.clients.http import HttpClient

        return HttpClient(address)
    from loadtest.clients.grpc import GrpcClient

    return GrpcClient(address)
