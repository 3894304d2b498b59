"""Rows of references as people keep them, and everything that can be wrong with them, said with its line."""

import json

import pytest

from server.core.errors import InvalidArgumentError
from server.evaluation.records import hash_text
from server.service.reference_files import MAX_NUM_ROWS, ReferenceRow, RowFormat, input_rows, request_rows


def jsonl(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_jsonl_rows_are_read_in_both_forms() -> None:
    data = jsonl({"request_id": "a", "references": ["one", "two"]}, {"request_id": "b", "reference": "three"})
    read = request_rows(b"\xef\xbb\xbf" + data + b"\n\n", RowFormat.JSONL)
    assert read.rows == (ReferenceRow(1, "a", ("one", "two")), ReferenceRow(2, "b", ("three",)))
    assert read.errors == ()


def test_csv_rows_are_read_with_several_columns_and_lines_in_cells() -> None:
    data = 'request_id,reference,reference\r\na,"one\nand a half",two\r\n\r\nb,three,\r\n'.encode("utf-8-sig")
    read = request_rows(data, RowFormat.CSV)
    assert read.rows == (ReferenceRow(2, "a", ("one\nand a half", "two")), ReferenceRow(5, "b", ("three",)))
    listed = request_rows(b'references,request_id\n"[""one"", ""two""]",a\n', RowFormat.CSV)
    assert listed.rows == (ReferenceRow(2, "a", ("one", "two")),)


def test_rows_of_one_request_are_put_together() -> None:
    data = jsonl(*({"request_id": "a", "reference": text} for text in ("one", "two", "one")))
    assert request_rows(data, RowFormat.JSONL).rows == (ReferenceRow(1, "a", ("one", "two")),)


GOOD = b'{"request_id": "good", "reference": "x"}'
BAD_JSON_LINES = [
    (b'{"request_id": "a", "reference": "\xff\xfe"}', "not valid UTF-8"),
    (b'{"request_id": "a", ', "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"request_id": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    (b'["a", "b"]', "not a JSON object"),
    (b'{"request_id": "a"}', "give one of references and reference"),
    (b'{"request_id": "a", "reference": "x", "references": ["x"]}', "give one of references and reference"),
    (b'{"request_id": "a", "references": "x"}', "references is a list of texts"),
    (b'{"request_id": "a", "references": [1]}', "references is a list of texts"),
    (b'{"request_id": "a", "references": []}', "at least one reference"),
    (b'{"request_id": "a", "reference": " "}', "a reference is empty"),
    (b'{"request_id": "a", "reference": "\\ud800"}', "not valid Unicode"),
    (b'{"request_id": "a", "reference": "' + b"x" * 20_001 + b'"}', "over 20000 characters"),
    (jsonl({"request_id": "a", "references": ["x"] * 17}), "at most 16 references"),
    (b'{"request_id": "", "reference": "x"}', "request_id must be"),
    (b'{"request_id": 7, "reference": "x"}', "request_id is missing or no text"),
    (b'{"reference": "x"}', "request_id is missing or no text"),
    (b'{"request_id": "a", "reference": "x", "secret": 1}', "unknown field 'secret'"),
    (b"\x00", "not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD_JSON_LINES)
def test_bad_json_line_is_told_and_its_neighbours_are_read(line: bytes, message: str) -> None:
    read = request_rows(GOOD + b"\n" + line + b"\n" + GOOD.replace(b"good", b"too"), RowFormat.JSONL)
    assert [row.subject for row in read.rows] == ["good", "too"]
    [error] = read.errors
    assert error.line == 2
    assert message in error.message
    assert len(error.message) < 300


BAD_CSV_LINES = [
    (b"a,\xff", "not valid Unicode"),
    (b"a", "1 cells, where line 1 has 2 columns"),
    (b"a,b,c", "3 cells, where line 1 has 2 columns"),
    (b"a,", "at least one reference"),
    (b",x", "request_id must be"),
    (b"a b,x", "request_id must be"),
]


@pytest.mark.parametrize(("line", "message"), BAD_CSV_LINES)
def test_bad_csv_line_is_told_and_its_neighbours_are_read(line: bytes, message: str) -> None:
    read = request_rows(b"request_id,reference\ngood,x\n" + line + b"\ntoo,x\n", RowFormat.CSV)
    assert [row.subject for row in read.rows] == ["good", "too"]
    [error] = read.errors
    assert error.line == 3
    assert message in error.message


@pytest.mark.parametrize("rest", [b'b,"never closed', b'b,"x" y', b"b," + b"x" * 200_000])
def test_csv_that_cannot_be_read_on_says_where(rest: bytes) -> None:
    read = request_rows(b"request_id,reference\ngood,x\n" + rest + b"\nlost,x\n", RowFormat.CSV)
    assert [row.subject for row in read.rows] == ["good"]
    [error] = read.errors
    assert error.line == 3
    assert "not read" in error.message


def test_csv_list_that_is_none_is_told() -> None:
    read = request_rows(b'request_id,references\na,"{}"\nb,[\n', RowFormat.CSV)
    assert [error.message for error in read.errors] == ["references is not a JSON list"] * 2


@pytest.mark.parametrize("header", [b"id,text", b"request_id", b"reference", b"request_id,reference,other", b"\xff"])
def test_csv_with_other_columns_is_refused(header: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="line 1: the columns are"):
        request_rows(header + b"\na,b\n", RowFormat.CSV)


@pytest.mark.parametrize("form", RowFormat)
def test_files_without_rows_or_with_too_many_are_refused(form: RowFormat) -> None:
    with pytest.raises(InvalidArgumentError, match="no rows"):
        request_rows(b"\n\n", form) if form is RowFormat.JSONL else request_rows(b"request_id,reference\n", form)
    many = b"request_id,reference\n" + b"a,x\n" * (MAX_NUM_ROWS + 1) if form is RowFormat.CSV else GOOD + b"\n"
    with pytest.raises(InvalidArgumentError, match="at most"):
        request_rows(many if form is RowFormat.CSV else many * (MAX_NUM_ROWS + 1), form)


def test_set_rows_name_an_input_by_its_text_or_its_hash() -> None:
    digest = hash_text("by hash")
    data = jsonl({"text": "by text", "reference": "x"}, {"input_sha256": digest.upper(), "references": ["y"]})
    rows = {row.subject: row.references for row in input_rows(data).rows}
    assert rows == {hash_text("by text"): ("x",), digest: ("y",)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reference": "x"}, "give one of text and input_sha256"),
        ({"text": "a", "input_sha256": "b", "reference": "x"}, "give one of text and input_sha256"),
        ({"input_sha256": "abc", "reference": "x"}, "64 hexadecimal digits"),
        ({"input_sha256": "g" * 64, "reference": "x"}, "64 hexadecimal digits"),
        ({"text": 1, "reference": "x"}, "text is missing or no text"),
        ({"text": "\ud800", "reference": "x"}, "not valid Unicode"),
        ({"request_id": "a", "reference": "x"}, "unknown field"),
    ],
)
def test_bad_set_rows_are_told(row: dict[str, object], message: str) -> None:
    [error] = input_rows(jsonl(row)).errors
    assert message in error.message
