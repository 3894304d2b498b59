"""Rows of references as people keep them, JSONL or CSV, read line by line: what a row has wrong is said with its line.

Knows no requests and no protocol. Bounded by the bytes it is handed; any thread may call.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.core.errors import InvalidArgumentError, MedleyError
from server.core.request import check_request_id
from server.evaluation.records import hash_text
from server.service.feedback import check_references
from server.service.prompts import check_unicode

MAX_NUM_ROWS = 20_000
_REFERENCES = ("reference", "references")
_HASH_LETTERS = frozenset("0123456789abcdef")
_NUM_HASH_LETTERS = 64


class RowFormat(StrEnum):
    """How rows are written."""

    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a row.

    Attributes:
        line: Where it begins, from 1.
        message: What is wrong; repeats no text of the row.
    """

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """References for one thing.

    Attributes:
        line: Where the row begins, from 1.
        subject: A request id, or the SHA-256 of an input.
        references: Texts, checked.
    """

    line: int
    subject: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """What a file says.

    Attributes:
        rows: Good rows; several of one subject are put together, at the first one's line.
        errors: The others.
    """

    rows: tuple[ReferenceRow, ...]
    errors: tuple[LineError, ...]


_Fields = Mapping[str, object]


def request_rows(data: bytes, form: RowFormat) -> ReferenceRows:
    """Read rows of ``request_id``, and ``references`` (a list) or ``reference`` (a text).

    In a CSV the first row names the columns; there may be several ``reference``, of which empty ones count for nothing,
    and ``references`` is a JSON list.

    Raises:
        InvalidArgumentError: If there are no rows or too many, or a CSV does not have these columns.
    """
    numbered = _csv_rows(data) if form is RowFormat.CSV else _json_rows(data)
    return _read(numbered, {"request_id", *_REFERENCES}, _request_id)


def input_rows(data: bytes) -> ReferenceRows:
    """Read JSONL rows of ``text`` or ``input_sha256``, and ``references`` or ``reference``.

    Raises:
        InvalidArgumentError: If there are no rows or too many.
    """
    return _read(_json_rows(data), {"text", "input_sha256", *_REFERENCES}, _input_hash)


def _read(
    numbered: Iterable[tuple[int, _Fields | LineError]], known: set[str], subject_of: Callable[[_Fields], str]
) -> ReferenceRows:
    rows: dict[str, ReferenceRow] = {}
    errors: list[LineError] = []
    num_rows = 0
    for line, fields in numbered:
        num_rows += 1
        if num_rows > MAX_NUM_ROWS:
            raise InvalidArgumentError(f"at most {MAX_NUM_ROWS} rows at once; send the rest apart")
        if isinstance(fields, LineError):
            errors.append(fields)
            continue
        try:
            if unknown := sorted(set(fields) - known):
                raise InvalidArgumentError(f"unknown field {unknown[0][:64]!r}; fields are {', '.join(sorted(known))}")
            subject = subject_of(fields)
            before = rows.get(subject)
            references = _references(fields)
            if before is not None:
                references = tuple(dict.fromkeys(before.references + references))
            check_references(references)
            rows[subject] = ReferenceRow(line if before is None else before.line, subject, references)
        except MedleyError as error:
            errors.append(LineError(line, error.message))
    if not num_rows:
        raise InvalidArgumentError("there are no rows")
    return ReferenceRows(tuple(rows.values()), tuple(errors))


def _json_rows(data: bytes) -> Iterator[tuple[int, _Fields | LineError]]:
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield number, _json_row(number, line)


def _json_row(number: int, line: bytes) -> _Fields | LineError:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError:
        return LineError(number, "not valid UTF-8")
    except (ValueError, RecursionError):
        return LineError(number, "not valid JSON")
    return fields if isinstance(fields, dict) else LineError(number, "not a JSON object")


def _csv_rows(data: bytes) -> Iterator[tuple[int, _Fields | LineError]]:
    # What is no UTF-8 becomes lone surrogates, which are refused where they are: one bad row does not spoil the file.
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, LineError(line, f"not valid CSV: {error}; what comes after it was not read")
            return
        if cells is None:
            return
        if columns is None:
            columns = _columns(cells)
        elif cells:
            yield line, _csv_row(line, columns, cells)
        line = reader.line_num + 1


def _columns(cells: Sequence[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    others = set(columns) - {"request_id", *_REFERENCES}
    if others or columns.count("request_id") != 1 or not set(_REFERENCES) & set(columns):
        raise InvalidArgumentError("line 1: the columns are request_id, and reference (or references, a JSON list)")
    return columns


def _csv_row(line: int, columns: Sequence[str], cells: Sequence[str]) -> _Fields | LineError:
    if len(cells) != len(columns):
        return LineError(line, f"{len(cells)} cells, where line 1 has {len(columns)} columns")
    fields: dict[str, object] = {}
    references: list[object] = []
    for column, cell in zip(columns, cells, strict=True):
        if column == "request_id":
            fields[column] = cell
        elif column == "reference":
            references += [cell] if cell.strip() else []
        else:
            try:
                listed = json.loads(cell) if cell.strip() else []
            except (ValueError, RecursionError):
                listed = None
            if not isinstance(listed, list):
                return LineError(line, "references is not a JSON list")
            references += listed
    return fields | {"references": references}


def _request_id(fields: _Fields) -> str:
    return check_request_id(_text(fields, "request_id"))


def _input_hash(fields: _Fields) -> str:
    if ("text" in fields) == ("input_sha256" in fields):
        raise InvalidArgumentError("give one of text and input_sha256")
    if "text" in fields:
        text = _text(fields, "text")
        check_unicode(text, "text")
        return hash_text(text)
    digest = _text(fields, "input_sha256").lower()
    if len(digest) != _NUM_HASH_LETTERS or not _HASH_LETTERS.issuperset(digest):
        raise InvalidArgumentError(f"input_sha256 has {_NUM_HASH_LETTERS} hexadecimal digits")
    return digest


def _references(fields: _Fields) -> tuple[str, ...]:
    if len(set(_REFERENCES) & set(fields)) != 1:
        raise InvalidArgumentError("give one of references and reference")
    given = fields["references"] if "references" in fields else [fields["reference"]]
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise InvalidArgumentError("references is a list of texts, reference a text")
    if not given:
        raise InvalidArgumentError("at least one reference is needed")
    references = tuple(given)
    check_references(references)
    return references


def _text(fields: _Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} is missing or no text")
    return value
