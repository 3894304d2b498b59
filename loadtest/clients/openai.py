"""The client of any OpenAI-compatible server: ``/v1/completions`` or ``/v1/chat/completions``, whole or streamed.

Adapters are named in ``model``, joined by ``+`` where there are several; a request to the base names the base's model,
which is the first the server lists unless it is given.
"""

from collections.abc import AsyncGenerator
from enum import StrEnum
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from loadtest.clients import openai_wire as wire
from loadtest.clients.base import (
    CONTROL_TIMEOUT_S,
    PROTOCOL,
    ClientError,
    Credentials,
    SummaryAnswer,
    SummaryPiece,
    SummaryRequest,
)
from loadtest.clients.http_connection import HttpConnection, event_data, parse


class Route(StrEnum):
    """Which of OpenAI's routes."""

    COMPLETIONS = "completions"
    CHAT = "chat"


_PATHS = {Route.COMPLETIONS: "/v1/completions", Route.CHAT: "/v1/chat/completions"}


class OpenAIClient:
    """Speaks OpenAI's protocol.

    Args:
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.
        route: Which route.
        model: What requests to the base name; asked of the server when empty.
    """

    def __init__(self, address: str, credentials: Credentials, route: Route, model: str = "") -> None:
        self._connection = HttpConnection(address, credentials, _error_of)
        self._route, self._model = route, model

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
        """Return the whole answer; see :class:`~loadtest.clients.base.GenerationClient`."""
        json = await self._body_of(request)
        async with self._connection.answer("POST", _PATHS[self._route], timeout_s, json=json) as response:
            body = parse(wire.Answer, await response.read())
        if not body.choices or body.usage is None:
            raise ClientError(PROTOCOL, "the answer has no choice or no usage")
        return _answer(body.id, body.choices[0].content, body.choices[0].finish_reason, body.usage)

    async def stream(self, request: SummaryRequest, timeout_s: float) -> AsyncGenerator[SummaryPiece]:
        """Yield the answer in pieces; see :class:`~loadtest.clients.base.GenerationClient`.

        A server that does not tell the usage of a stream is taken to send one token a piece.
        """
        json = await self._body_of(request) | {"stream": True, "stream_options": {"include_usage": True}}
        deltas: list[str] = []
        reason, usage, request_id = None, None, ""
        async with self._connection.answer("POST", _PATHS[self._route], timeout_s, json=json) as response:
            async for data in event_data(response):
                event = parse(wire.Answer, data)
                if event.error is not None:
                    raise _client_error(event.error, response.status)
                request_id, usage = event.id or request_id, event.usage or usage
                for choice in event.choices[:1]:
                    reason = choice.finish_reason or reason
                    if choice.content:
                        deltas.append(choice.content)
                        yield SummaryPiece(choice.content)
        if reason is None:
            raise ClientError(PROTOCOL, "the stream ended without a finish reason")
        counted = usage or wire.Usage(completion_tokens=len(deltas))
        yield SummaryPiece("", _answer(request_id, "".join(deltas), reason, counted))

    async def _body_of(self, request: SummaryRequest) -> dict[str, object]:
        body: dict[str, object] = {"model": "+".join(request.adapters) or await self._base_model()}
        if self._route is Route.CHAT:
            body["messages"] = [{"role": "user", "content": request.text}]
        else:
            body["prompt"] = request.text
        if request.max_new_tokens is not None:
            body["max_tokens"] = request.max_new_tokens
            if request.exact:
                # Not OpenAI's own, but vLLM's and Medley's.
                body |= {"min_tokens": request.max_new_tokens, "ignore_eos": True}
        return body

    async def _base_model(self) -> str:
        if not self._model:
            async with self._connection.answer("GET", "/v1/models", CONTROL_TIMEOUT_S) as response:
                models = parse(wire.Models, await response.read()).data
            if not models:
                raise ClientError(PROTOCOL, "the server lists no model")
            self._model = models[0].id
        return self._model


def _answer(request_id: str, text: str, reason: str | None, usage: wire.Usage) -> SummaryAnswer:
    return SummaryAnswer(request_id, text, (), reason or "", usage.prompt_tokens, usage.completion_tokens)


def _error_of(status: int, data: bytes) -> ClientError:
    try:
        error = wire.Refusal.model_validate_json(data).error
    except ValidationError:
        return ClientError(f"HTTP_{status}", data[:200].decode(errors="replace") or "no body")
    return _client_error(error, status)


def _client_error(error: wire.Error, status: int) -> ClientError:
    code = error.code if isinstance(error.code, str) and error.code else f"HTTP_{error.code or status}"
    return ClientError(code, error.message)
