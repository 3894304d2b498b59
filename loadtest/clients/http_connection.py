"""One HTTP session: requests, server-sent events, and every failure as a client error. Knows no route.

On aiohttp rather than httpx: an open-loop client shares its machine with what it measures, and reading a stream of 48
events costs it about a third of the processor time that httpx takes (2.5 ms against 8.3 ms when this was chosen).
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from loadtest.clients.base import CONNECTION, PROTOCOL, TIMEOUT, ClientError, Credentials

_EVENT_PREFIX = b"data:"
_END_OF_STREAM = b"[DONE]"

Body = TypeVar("Body", bound=BaseModel)


class HttpConnection:
    """Speaks HTTP/1.1 with keep-alive; as many connections as requests in flight.

    Args:
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.
        error_of: Makes an error of a refusal's status and body.
    """

    def __init__(self, address: str, credentials: Credentials, error_of: Callable[[int, bytes], ClientError]) -> None:
        self._base_url = f"https://{address}" if credentials.ca_pem else f"http://{address}"
        self._headers = {"authorization": f"Bearer {credentials.key}"} if credentials.key else {}
        self._trust = ssl.create_default_context(cadata=credentials.ca_pem) if credentials.ca_pem else True
        self._error_of = error_of
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

    @asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        timeout_s: float,
        *,
        json: object = None,
        data: aiohttp.FormData | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request and give a successful response.

        Raises:
            ClientError: For every failure, also while the response is read.
        """
        assert self._session is not None, "use the client as 'async with'"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self._base_url + path, json=json, data=data, params=params, headers=headers, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise self._error_of(response.status, await response.read())
                yield response
        except TimeoutError as error:
            raise ClientError(TIMEOUT, f"no whole answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise ClientError(CONNECTION, str(error) or type(error).__name__) from error


async def event_data(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event; servers of this kind write one ``data:`` line an event.

    Reads on to the end of the body: a connection left before it cannot be used again.
    """
    async for line in response.content:
        data = line.removeprefix(_EVENT_PREFIX).strip()
        if line.startswith(_EVENT_PREFIX) and data != _END_OF_STREAM:
            yield data


def parse(kind: type[Body], data: bytes) -> Body:
    """Return a checked body.

    Raises:
        ClientError: If it is not what it should be.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ClientError(PROTOCOL, f"unexpected answer: {error}") from error
