"""The faces of clients: what any server answers, and what Medley's can do beside it. Knows no protocol.

A client belongs to one event loop and may carry any number of requests at once. Every failure is a
:class:`ClientError` with a code: the server's own, or one of the client-side codes below.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

CONNECTION = "CONNECTION"
"""The server could not be reached or the connection broke."""

TIMEOUT = "TIMEOUT"
"""The client's own time limit passed."""

PROTOCOL = "PROTOCOL"
"""The answer was not what the wire contract promises."""


CONTROL_TIMEOUT_S = 60.0
"""Time limit of calls that generate nothing: uploads, lists, references."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client proves itself by, and whom it trusts.

    Attributes:
        key: API key; empty for none. Never part of a report.
        ca_pem: Speak TLS and trust this authority's certificate (PEM); empty speaks plain text.
    """

    key: str = field(default="", repr=False)
    ca_pem: str = ""


NO_CREDENTIALS = Credentials()


class ClientError(Exception):
    """A request that was not answered.

    Args:
        code: The server's error code, ``CONNECTION``, ``TIMEOUT`` or ``PROTOCOL``.
        message: What the server said, or what the client saw.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep the code beside the message."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class SummaryRequest:
    """What to ask for.

    Attributes:
        text: The text to summarize.
        adapters: Adapter references; empty means the base.
        max_new_tokens: Most tokens to generate; the server's default when None.
        references: Reference summaries to score the answer against.
        exact: Generate just ``max_new_tokens``, where the protocol can say so.
    """

    text: str
    adapters: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    references: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True, slots=True)
class ServerTimings:
    """What the server measured, in milliseconds since it accepted the request."""

    queue_ms: float
    ttft_ms: float
    e2e_ms: float


@dataclass(frozen=True, slots=True)
class SummaryAnswer:
    """A whole answer.

    Attributes:
        request_id: The id the server knows the request by.
        summary: The text.
        adapters: ``name:version`` of what served it, in the server's order.
        finish_reason: ``stop`` or ``length``.
        num_prompt_tokens: Tokens of the prompt.
        num_output_tokens: Tokens generated.
        timings: What the server measured, if it tells.
        scores: ROUGE in percent by metric name, when references were sent and scoring was in time.
    """

    request_id: str
    summary: str
    adapters: tuple[str, ...]
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    timings: ServerTimings | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SummaryPiece:
    """A piece of a streamed answer.

    Attributes:
        delta: Text added, possibly empty.
        answer: The whole answer; on the last piece and only there.
    """

    delta: str
    answer: SummaryAnswer | None = None


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of an adapter, as the server lists it."""

    name: str
    version: int
    digest: str
    kind: str
    state: str


class GenerationClient(Protocol):
    """A connection to a running server, Medley's or another's. Use as ``async with``."""

    async def summarize(self, request: SummaryRequest, timeout_s: float) -> SummaryAnswer:
        """Return the whole answer.

        Raises:
            ClientError: If the server refused or failed, or could not be reached.
        """
        ...

    def stream(self, request: SummaryRequest, timeout_s: float) -> AsyncGenerator[SummaryPiece]:
        """Yield the answer in pieces; the last, and only it, carries the whole answer. Closing it early cancels.

        Raises:
            ClientError: If the server refused or failed, or could not be reached, also half way.
        """
        ...

    async def __aenter__(self) -> Self:
        """Open the connection."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection; requests in flight are cancelled."""
        ...


class MedleyClient(GenerationClient, Protocol):
    """A connection to a running Medley server."""

    async def submit_references(self, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request against references; ROUGE in percent by metric name.

        Raises:
            ClientError: If the request is unknown or the server failed.
        """
        ...

    async def upload_adapter(self, name: str, folder: Path, alias: str | None = None) -> AdapterVersion:
        """Upload a PEFT folder as the next version of a name.

        Raises:
            ClientError: If the server refused it.
        """
        ...

    async def list_adapters(self) -> tuple[AdapterVersion, ...]:
        """Return every version of every adapter.

        Raises:
            ClientError: If the server failed.
        """
        ...

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version: promote it.

        Raises:
            ClientError: If the server refused it.
        """
        ...

    async def delete_version(self, name: str, version: int) -> None:
        """Delete a version once the requests that run on it have ended; aliases that point at it go.

        Raises:
            ClientError: If the server refused it.
        """
        ...


def adapter_files(folder: Path) -> list[Path]:
    """Return the files of a PEFT folder that a server takes, in a fixed order.

    Raises:
        ClientError: If the folder holds none.
    """
    names = ("adapter_config.json", "adapter_model.safetensors", "medley.json", "card.md")
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        raise ClientError(PROTOCOL, f"{folder} holds no adapter files")
    return files
