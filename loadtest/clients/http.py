"""The HTTP client: ``POST /v1/summarize`` whole or as server-sent events, references, adapter upload and list.

On aiohttp rather than httpx: an open-loop client shares its machine with what it measures, and reading a stream of 48
events costs it about a third of the processor time that httpx takes (2.5 ms against 8.3 ms when this was chosen).
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from loadtest.clients import http_wire as wire
from loadtest.clients.base import (
    CONNECTION,
    CONTROL_TIMEOUT_S,
    PROTOCOL,
    TIMEOUT,
    AdapterVersion,
    ClientError,
    Credentials,
    SummaryAnswer,
    SummaryPiece,
    SummaryRequest,
    adapter_files,
)

_EVENT_PREFIX = b"data:"
_END_OF_STREAM = b"[DONE]"

Body = TypeVar("Body", bound=BaseModel)


class HttpClient:
    """Speaks HTTP/1.1 with keep-alive; as many connections as requests in flight.

    Args:
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._base_url = f"https://{address}" if credentials.ca_pem else f"http://{address}"
        self._headers = {"authorization": f"Bearer {credentials.key}"} if credentials.key else {}
        self._trust = ssl.create_default_context(cadata=credentials.ca_pem) if credentials.ca_pem else True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session; connections are made on use."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._trust)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        assert self._session is not None
        await self._session.close()

    async def summarize(self, request: SummaryRequest, timeout_s: float) -> SummaryAnswer:
        """Return the whole answer; see :class:`~loadtest.clients.base.MedleyClient`."""
        async with self._answer("POST", "/v1/summarize", timeout_s, json=_body_of(request)) as response:
            body = _parse(wire.SummaryBody, await response.read())
        return body.answer(body.summary, body.adapters)

    async def stream(self, request: SummaryRequest, timeout_s: float) -> AsyncGenerator[SummaryPiece]:
        """Yield the answer in pieces; see :class:`~loadtest.clients.base.MedleyClient`."""
        deltas: list[str] = []
        adapters: list[wire.AdapterUseBody] = []
        answer: SummaryAnswer | None = None
        json = _body_of(request) | {"stream": True}
        async with self._answer("POST", "/v1/summarize", timeout_s, json=json) as response:
            async for data in _event_data(response):
                event = _parse(wire.EventBody, data)
                if event.error is not None:
                    raise ClientError(event.error.code, event.error.message)
                deltas.append(event.delta)
                adapters = event.adapters or adapters
                if event.finish_reason is not None:
                    answer = _parse(wire.EndBody, data).answer("".join(deltas), adapters)
                yield SummaryPiece(event.delta, answer)
        if answer is None:
            raise ClientError(PROTOCOL, "the stream ended without a last piece")

    async def submit_references(self, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request; see :class:`~loadtest.clients.base.MedleyClient`."""
        json = {"request_id": request_id, "references": list(references)}
        async with self._answer("POST", "/v1/references", CONTROL_TIMEOUT_S, json=json) as response:
            return _parse(wire.ScoresBody, await response.read()).scores

    async def upload_adapter(self, name: str, folder: Path, alias: str | None = None) -> AdapterVersion:
        """Upload a PEFT folder; see :class:`~loadtest.clients.base.MedleyClient`."""
        form = aiohttp.FormData()
        if alias is not None:
            form.add_field("alias", alias)
        path = f"/v1/adapters/{name}/versions"
        with ExitStack() as files:
            # Open files are sent in pieces; one large piece would hold up every other request of this client.
            for file in adapter_files(folder):
                stream = files.enter_context(file.open("rb"))
                form.add_field("files", stream, filename=file.name, content_type="application/octet-stream")
            async with self._answer("POST", path, CONTROL_TIMEOUT_S, data=form) as response:
                return _parse(wire.VersionBody, await response.read()).version_of()

    async def list_adapters(self) -> tuple[AdapterVersion, ...]:
        """List all versions; see :class:`~loadtest.clients.base.MedleyClient`."""
        async with self._answer("GET", "/v1/adapters", CONTROL_TIMEOUT_S) as response:
            body = _parse(wire.AdaptersBody, await response.read())
        return tuple(version.version_of() for adapter in body.adapters for version in adapter.versions)

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, timeout_s: float, *, json: object = None, data: aiohttp.FormData | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request and give a successful response; every failure, also while it is read, is a ClientError."""
        assert self._session is not None, "use the client as 'async with'"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self._base_url + path, json=json, data=data, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise _error_of(response.status, await response.read())
                yield response
        except TimeoutError as error:
            raise ClientError(TIMEOUT, f"no whole answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise ClientError(CONNECTION, str(error) or type(error).__name__) from error


def _body_of(request: SummaryRequest) -> dict[str, object]:
    body: dict[str, object] = {"text": request.text, "adapters": list(request.adapters)}
    if request.max_new_tokens is not None:
        body["max_new_tokens"] = request.max_new_tokens
    if request.references:
        body["references"] = list(request.references)
    return body


async def _event_data(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event; our server writes one ``data:`` line an event.

    Reads on to the end of the body: a connection left before it cannot be used again.
    """
    async for line in response.content:
        data = line.removeprefix(_EVENT_PREFIX).strip()
        if line.startswith(_EVENT_PREFIX) and data != _END_OF_STREAM:
            yield data


def _parse(kind: type[Body], data: bytes) -> Body:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ClientError(PROTOCOL, f"unexpected answer: {error}") from error


def _error_of(status: int, data: bytes) -> ClientError:
    try:
        error = wire.ErrorAnswer.model_validate_json(data).error
    except ValidationError:
        return ClientError(PROTOCOL, f"HTTP {status} without our error object")
    return ClientError(error.code, error.message)
