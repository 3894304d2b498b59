"""The HTTP client: ``POST /v1/summarize`` whole or as server-sent events, references, and the changes of adapters."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from loadtest.clients import http_wire as wire
from loadtest.clients.base import (
    CONTROL_TIMEOUT_S,
    PROTOCOL,
    AdapterVersion,
    ClientError,
    Credentials,
    SummaryAnswer,
    SummaryPiece,
    SummaryRequest,
    adapter_files,
)
from loadtest.clients.http_connection import HttpConnection, event_data, parse

# The server's own limit unless its operator set another.
_LONGEST_DEADLINE_S = 3600.0


class HttpClient:
    """Speaks Medley's own HTTP routes. A time limit travels to the server as the deadline.

    Args:
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._connection = HttpConnection(address, credentials, _error_of)

    async def __aenter__(self) -> Self:
        """Open the session; connections are made on use."""
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._connection.__aexit__(kind, error, trace)

    async def summarize(self, request: SummaryRequest, timeout_s: float) -> SummaryAnswer:
        """Return the whole answer; see :class:`~loadtest.clients.base.MedleyClient`."""
        async with self._connection.answer(
            "POST", "/v1/summarize", timeout_s, json=_body_of(request), headers=_deadline(timeout_s)
        ) as response:
            body = parse(wire.SummaryBody, await response.read())
        return body.answer(body.summary, body.adapters)

    async def stream(self, request: SummaryRequest, timeout_s: float) -> AsyncGenerator[SummaryPiece]:
        """Yield the answer in pieces; see :class:`~loadtest.clients.base.MedleyClient`."""
        deltas: list[str] = []
        adapters: list[wire.AdapterUseBody] = []
        answer: SummaryAnswer | None = None
        json = _body_of(request) | {"stream": True}
        async with self._connection.answer(
            "POST", "/v1/summarize", timeout_s, json=json, headers=_deadline(timeout_s)
        ) as response:
            async for data in event_data(response):
                event = parse(wire.EventBody, data)
                if event.error is not None:
                    raise ClientError(event.error.code, event.error.message)
                deltas.append(event.delta)
                adapters = event.adapters or adapters
                if event.finish_reason is not None:
                    answer = parse(wire.EndBody, data).answer("".join(deltas), adapters)
                yield SummaryPiece(event.delta, answer)
        if answer is None:
            raise ClientError(PROTOCOL, "the stream ended without a last piece")

    async def submit_references(self, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request; see :class:`~loadtest.clients.base.MedleyClient`."""
        json = {"request_id": request_id, "references": list(references)}
        async with self._connection.answer("POST", "/v1/references", CONTROL_TIMEOUT_S, json=json) as response:
            return parse(wire.ScoresBody, await response.read()).scores

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
            async with self._connection.answer("POST", path, CONTROL_TIMEOUT_S, data=form) as response:
                return parse(wire.VersionBody, await response.read()).version_of()

    async def list_adapters(self) -> tuple[AdapterVersion, ...]:
        """List all versions; see :class:`~loadtest.clients.base.MedleyClient`."""
        async with self._connection.answer("GET", "/v1/adapters", CONTROL_TIMEOUT_S) as response:
            body = parse(wire.AdaptersBody, await response.read())
        return tuple(version.version_of() for adapter in body.adapters for version in adapter.versions)

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version; see :class:`~loadtest.clients.base.MedleyClient`."""
        path = f"/v1/adapters/{name}/aliases/{alias}"
        async with self._connection.answer("PUT", path, CONTROL_TIMEOUT_S, json={"version": version}) as response:
            await response.read()

    async def delete_version(self, name: str, version: int) -> None:
        """Delete a version; see :class:`~loadtest.clients.base.MedleyClient`."""
        path = f"/v1/adapters/{name}/versions/{version}"
        async with self._connection.answer("DELETE", path, CONTROL_TIMEOUT_S, params={"force": "true"}) as response:
            await response.read()


def _body_of(request: SummaryRequest) -> dict[str, object]:
    body: dict[str, object] = {"text": request.text, "adapters": list(request.adapters)}
    if request.max_new_tokens is not None:
        body["max_new_tokens"] = request.max_new_tokens
    if request.references:
        body["references"] = list(request.references)
    return body


def _deadline(timeout_s: float) -> dict[str, str]:
    """Tell the server the time limit, as gRPC does; a longer one than it takes is not told."""
    return {"x-deadline-ms": str(max(1, int(timeout_s * 1000)))} if timeout_s <= _LONGEST_DEADLINE_S else {}


def _error_of(status: int, data: bytes) -> ClientError:
    try:
        error = wire.ErrorAnswer.model_validate_json(data).error
    except ValidationError:
        return ClientError(PROTOCOL, f"HTTP {status} without our error object")
    return ClientError(error.code, error.message)
