"""Multipart bodies, cut into pieces of every size."""

from collections.abc import AsyncIterator

import pytest

from server.api.http.multipart import MAX_PARTS, MultipartReader
from server.core.errors import InvalidArgumentError

TYPE = 'multipart/form-data; boundary="edge"'
BODY = (
    b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\nContent-Type: text/plain\r\n\r\n'
    b"one\r\n--edg\r\n--edge\r\n"
    b'content-disposition: form-data; name="alias"\r\n\r\nstable\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="files"; filename="empty"\r\n\r\n\r\n--edge--\r\n'
)


async def _cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def _read(body: bytes, size: int) -> dict[tuple[str, str], bytes]:
    parts: dict[tuple[str, str], bytes] = {}
    async for piece in MultipartReader(TYPE).read(_cut(body, size)):
        key = (piece.field, piece.file_name)
        parts[key] = parts.get(key, b"") + piece.data
    return parts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
async def test_parts_do_not_depend_on_how_the_body_is_cut(size: int) -> None:
    assert await _read(BODY, size) == {
        ("files", "a.json"): b"one\r\n--edg",
        ("alias", ""): b"stable",
        ("files", "empty"): b"",
    }


async def test_large_part_comes_in_pieces() -> None:
    body = BODY.replace(b"one", b"x" * 100_000)
    pieces = [piece async for piece in MultipartReader(TYPE).read(_cut(body, 1000))]
    assert max(len(piece.data) for piece in pieces) <= 1000


@pytest.mark.parametrize("num_bytes", [0, 10, 60, 150, len(BODY) - 6])
async def test_body_cut_off_is_refused(num_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError):
        await _read(BODY[:num_bytes], 16)


async def test_too_many_parts_are_refused() -> None:
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n'
    assert await _read(part * MAX_PARTS + b"--edge--\r\n", 99)
    with pytest.raises(InvalidArgumentError, match="parts"):
        await _read(part * (MAX_PARTS + 1) + b"--edge--\r\n", 99)


async def test_endless_header_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        await _read(b"--edge\r\nX-Long: " + b"x" * 100_000, 999)
