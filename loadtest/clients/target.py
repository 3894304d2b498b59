"""What is measured: which server, over which protocol, and a client of it."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, Credentials, GenerationClient
from loadtest.clients.openai import OpenAIClient, Route
from loadtest.spec import spec


class Protocol(StrEnum):
    """What to speak: Medley's own protocols, or OpenAI's to any server."""

    HTTP = "http"
    GRPC = "grpc"
    OPENAI = "openai"


_DEFAULT_ADDRESSES = {Protocol.GRPC: "127.0.0.1:50051"}
_DEFAULT_ADDRESS = "127.0.0.1:8000"


@spec
class Target:
    """The server and how to ask it.

    Attributes:
        protocol: What to speak.
        address: ``host:port``; the server's default port here when empty.
        route: Which route; OpenAI's protocol only.
        model: What requests to the base name; OpenAI's protocol only, asked of the server when empty.
        stream: Ask for answers in pieces; TTFT, ITL and TPOT need it.
        timeout_s: Time limit of one request.
    """

    protocol: Protocol = Protocol.HTTP
    address: str = ""
    route: Route = Route.COMPLETIONS
    model: str = ""
    stream: bool = True
    timeout_s: Annotated[float, Field(gt=0, le=86400)] = 60.0

    @model_validator(mode="after")
    def _model_has_a_use(self) -> Self:
        if self.protocol is not Protocol.OPENAI and (self.model or self.route is not Route.COMPLETIONS):
            raise ValueError("'route' and 'model' are for protocol openai only")
        return self

    @property
    def full_address(self) -> str:
        """``host:port``."""
        return self.address or _DEFAULT_ADDRESSES.get(self.protocol, _DEFAULT_ADDRESS)

    @property
    def is_medley(self) -> bool:
        """Whether Medley's own protocol is spoken, so that adapters can be changed over it."""
        return self.protocol is not Protocol.OPENAI


def connect(target: Target, credentials: Credentials = NO_CREDENTIALS) -> GenerationClient:
    """Return an unopened client; a :class:`~loadtest.clients.base.MedleyClient` if the target is one of Medley's.

    Raises:
        ssl.SSLError: If the authority's certificate cannot be read.
    """
    if target.protocol is Protocol.OPENAI:
        return OpenAIClient(target.full_address, credentials, target.route, target.model)
    return create_client(WireProtocol(target.protocol.value), target.full_address, credentials)
