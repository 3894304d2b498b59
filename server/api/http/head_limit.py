"""HTTP/1.1 by llhttp, with a limit to the size of a request's head, which uvicorn's protocol of that parser has not.

Source:
    uvicorn 0.54 ``protocols/http/httptools_impl.py``: what is called when, and that an error raised in a callback of
    the parser is answered with 400 and ends the connection.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""Largest request line and headers together; what uvicorn's other parser allows."""


class LimitedHeadProtocol(HttpToolsProtocol):
    """One connection. A head that is too large is answered with 400 and ends it."""

    _is_in_head = False
    _num_head_bytes = 0
    _num_unfinished_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take bytes of the connection."""
        # The parser tells of a header once it is complete; one that never ends is counted as it comes.
        if self._is_in_head:
            self._num_unfinished_bytes += len(data)
            if self._num_unfinished_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._is_in_head, self._num_head_bytes, self._num_unfinished_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head."""
        self._is_in_head = False
        super().on_headers_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head of the request is too large")
