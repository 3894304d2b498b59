"""Multipart bodies in a stream: file bytes are handed on as they come and never gathered.

The framework's own form reader keeps every file in a temporary file of its own first; an upload has a staging folder.
Knows no adapters and no routes.

Source:
    multipart/form-data: RFC 7578, read by ``python-multipart``.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.core.errors import InvalidArgumentError

if TYPE_CHECKING:  # the library has the name for type checkers only
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 16
_MAX_HEADERS = 8
_MAX_HEADER_BYTES = 2048


@dataclass(frozen=True, slots=True)
class PartData:
    """A piece of one part; every part gives at least one piece, the first of them empty.

    Attributes:
        field: The part's field name.
        file_name: Its file name, empty for a plain field.
        data: The next bytes.
    """

    field: str
    file_name: str
    data: bytes


class MultipartReader:
    """Turns body bytes into pieces of parts.

    Args:
        content_type: The request's content type, with its boundary.

    Raises:
        InvalidArgumentError: If it is not multipart, or lacks a boundary.
    """

    def __init__(self, content_type: str) -> None:
        """Start before the first part."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidArgumentError("send the files as multipart/form-data with a boundary", param="content-type")
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(
                boundary, callbacks, max_header_count=_MAX_HEADERS, max_header_size=_MAX_HEADER_BYTES
            )
        except FormParserError as error:
            raise InvalidArgumentError("the multipart boundary is not well formed", param="content-type") from error
        self._pieces: list[PartData] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field = ""
        self._file_name = ""
        self._num_parts = 0
        self._ended = False

    async def read(self, body: AsyncIterator[bytes]) -> AsyncIterator[PartData]:
        """Yield the pieces of all parts.

        Raises:
            InvalidArgumentError: If the body is not well formed, ends early or has too many parts.
        """
        async for data in body:
            for piece in self._feed(data):
                yield piece
        if not self._ended:
            raise InvalidArgumentError("the multipart body ends before its last boundary")

    def _feed(self, data: bytes) -> list[PartData]:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidArgumentError("the body is not well-formed multipart/form-data") from error
        pieces, self._pieces = self._pieces, []
        return pieces

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidArgumentError(f"an upload has at most {MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        if not self._field:
            raise InvalidArgumentError("every part of the upload needs a name")
        self._pieces.append(PartData(self._field, self._file_name, b""))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(PartData(self._field, self._file_name, data[start:end]))

    def _on_end(self) -> None:
        self._ended = True
