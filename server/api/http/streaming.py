"""Server-sent events: one event per chunk, ``[DONE]`` at the end, and an error object where an answer broke off.

Source:
    Event format: https://html.spec.whatwg.org/multipage/server-sent-events.html; ``[DONE]`` as OpenAI's streams end.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.call import until_disconnect
from server.api.http.errors import error_body
from server.core.errors import CancelledError, ErrorCode, code_of
from server.service.generation import Generation

_LOGGER = logging.getLogger(__name__)
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """Streams a generation, closes it when the caller goes away, and always closes it at the end.

    Args:
        generation: What is streamed.
        events: Its chunks as JSON objects; a failure is an exception.
        request_id: For the error object.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncIterator[Mapping[str, object]], request_id: str) -> None:
        """Keep what to send; nothing is sent yet."""
        self._generation = generation
        self._events = events
        self._request_id = request_id
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; called once by the framework."""
        try:
            await until_disconnect(receive, self._send_all(send))
        except CancelledError:
            _LOGGER.debug("caller went away", extra={"request_id": self._request_id})
        finally:
            await self._generation.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await _send_bytes(send, _event(event))
            await _send_bytes(send, _DONE)
        except Exception as error:
            if code_of(error) is ErrorCode.INTERNAL:
                _LOGGER.error("stream failed", exc_info=error, extra={"request_id": self._request_id})
            await _send_bytes(send, _event(error_body(error, self._request_id)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_bytes(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _event(payload: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
