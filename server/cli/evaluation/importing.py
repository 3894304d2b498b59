"""``medley eval import``: references from a file, sent to a running server in pieces. Arguments, and the pieces.

The file is read line by line, so that it may be of any size; a piece has whole rows only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from server.cli.errors import fail, printable
from server.cli.options import AsJson, on_server
from server.core.errors import ErrorCode

if TYPE_CHECKING:
    from server.api.http.wire.evaluations import ReferenceBatchAnswer
    from server.cli.client import ServerClient

_CONTENT_TYPES = {".jsonl": "application/jsonl", ".ndjson": "application/jsonl", ".csv": "text/csv"}
_MAX_PIECE_BYTES = 1 << 20
_MAX_NUM_ROWS = 2_000
_MAX_NUM_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a file.

    Attributes:
        data: What is sent.
        num_before: Lines of the file before those of ``data``; below 0 where ``data`` repeats the file's first line.
    """

    data: bytes
    num_before: int


@on_server
def import_references(
    client: "ServerClient",
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines or CSV of request_id, and references or reference.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Score requests that a server answered against references from a file; ends with 1 if a row was refused."""
    from server.cli.client import Body
    from server.cli.tables import print_json

    content_type = _CONTENT_TYPES.get(file.suffix.lower())
    if content_type is None:
        fail(ErrorCode.INVALID_ARGUMENT, f"{file} does not end with {', '.join(_CONTENT_TYPES)}")
    total = {"num_accepted": 0, "num_unknown": 0, "num_refused": 0}
    errors: list[dict[str, object]] = []
    try:
        with file.open("rb") as lines:
            for piece in pieces(lines, with_header=content_type == "text/csv"):
                body = Body(content=piece.data, content_type=content_type)
                answer = cast("ReferenceBatchAnswer", client.change("POST", "/v1/references/batch", body))
                total["num_accepted"] += answer["num_accepted"]
                total["num_unknown"] += answer["num_unknown"]
                total["num_refused"] += answer["num_refused"]
                errors += [
                    {"line": error["line"] + piece.num_before, "message": error["message"]}
                    for error in answer["errors"]
                ]
    except OSError as error:
        fail(ErrorCode.INVALID_ARGUMENT, f"cannot read {file}: {error.strerror}")
    if as_json:
        print_json({**total, "errors": errors})
    else:
        for fault in errors[:_MAX_NUM_SHOWN]:
            typer.echo(f"{file}:{fault['line']}: {printable(str(fault['message']))}", err=True)
        typer.echo(" ".join(f"{name.removeprefix('num_')} {num}" for name, num in total.items()))
    if total["num_refused"]:
        raise typer.Exit(1)


def pieces(lines: Iterable[bytes], *, with_header: bool) -> Iterator[Piece]:
    """Cut a file into pieces that a server takes.

    Args:
        lines: Its lines, with their ends.
        with_header: Whether it is a CSV: its first row then goes before each piece, and rows may have several lines.
    """
    rows = _csv_rows(lines) if with_header else ((line, 1) for line in lines)
    header, num_header_lines = next(iter(rows), (b"", 0)) if with_header else (b"", 0)
    num_before = num_header_lines
    data, num_rows, num_lines = bytearray(), 0, 0
    for row, num_row_lines in rows:
        if num_rows and (num_rows == _MAX_NUM_ROWS or len(data) + len(row) > _MAX_PIECE_BYTES):
            yield Piece(header + data, num_before - num_header_lines)
            num_before += num_lines
            data, num_rows, num_lines = bytearray(), 0, 0
        data += row
        num_rows += 1
        num_lines += num_row_lines
    yield Piece(header + data, num_before - num_header_lines)


def _csv_rows(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Return each row and of how many lines it is: a row goes on as long as a quote is open."""
    row, num_lines = b"", 0
    for line in lines:
        row += line
        num_lines += 1
        if row.count(b'"') % 2 == 0 or len(row) > _MAX_PIECE_BYTES:
            yield row, num_lines
            row, num_lines = b"", 0
    if row:
        yield row, num_lines
