"""Streams a call's answers in server-sent events, with an error object where they broke off."""

import logging

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.call import until_disconnect
from server.api.http.errors import error_body
from server.api.http.wire.events import DONE, Pieces, event
from server.core.errors import CancelledError, ErrorCode, code_of
from server.service.several import Several

_LOGGER = logging.getLogger(__name__)
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """Streams what a call asked for, closes it when the caller goes away, and always closes it at the end.

    Args:
        several: What is streamed.
        pieces: Turns its chunks into events.
    """

    media_type = "text/event-stream"

    def __init__(self, several: Several, pieces: Pieces) -> None:
        """Keep what to send; nothing is sent yet."""
        self._several = several
        self._pieces = pieces
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; called once by the framework."""
        try:
            await until_disconnect(receive, self._send_all(send))
        except CancelledError:
            _LOGGER.debug("caller went away", extra={"request_id": self._several.request_id})
        finally:
            await self._several.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        piece = self._pieces.piece
        try:
            async for index, chunk in self._several.chunks():
                await send({"type": "http.response.body", "body": piece(index, chunk), "more_body": True})
            end = self._pieces.last() + DONE
        except Exception as error:
            request_id = self._several.request_id
            if code_of(error) is ErrorCode.INTERNAL:
                _LOGGER.error("stream failed", exc_info=error, extra={"request_id": request_id})
            end = event(error_body(error, request_id))
        await send({"type": "http.response.body", "body": end, "more_body": False})
