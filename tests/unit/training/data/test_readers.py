"""Every format gives the same records with their origin, and every defect is noted with file and line."""

import gzip
import json
import lzma

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from training.data.problems import ProblemLog
from training.data.readers import read_file

ROWS = [{"id": "a", "text": "One line", "split": "train"}, {"id": "b", "text": "Two\nlines, “quoted”", "split": "test"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = 'id,text,split\na,One line,train\nb,"Two\nlines, “quoted”",test\n'.encode()


def _read(folder, name, content):
    (folder / name).write_bytes(content)
    log = ProblemLog()
    return list(read_file(folder / name, name, log)), log


def _parquet():
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("x.jsonl", JSONL, (1, 2)),
        ("x.JSONL", b"\xef\xbb\xbf" + JSONL.removesuffix(b"\n"), (1, 2)),
        ("x.v2.jsonl.gz", gzip.compress(JSONL, mtime=0), (1, 2)),
        ("x.jsonl.xz", lzma.compress(JSONL), (1, 2)),
        ("x.csv", CSV, (2, 3)),
        ("x.csv", CSV.replace(b"\n", b"\r\n").replace(b"Two\r\n", b"Two\n"), (2, 3)),
        ("x.csv.gz", gzip.compress(CSV, mtime=0), (2, 3)),
        ("x.tsv", CSV.replace(b",", b"\t").replace(b"lines\t", b"lines,"), (2, 3)),
        ("x.parquet", _parquet(), (1, 2)),
    ],
)
def test_read_file_any_format_gives_rows_and_origins(tmp_path, name, content, lines):
    records, log = _read(tmp_path, name, content)
    assert not log.problems
    assert [record.values for record in records] == ROWS
    assert [record.origin for record in records] == [f"{name}:{line}" for line in lines]
    assert [record.split for record in records] == ["train", "test"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "place"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \xff}\n{"a": 3}\n', "broken UTF-8", "x.jsonl:2: byte 7 of the line is 0xff"),
        ("x.csv", b"a\nfine\nb\xe4d\n", "broken UTF-8", "x.csv:3: byte 2 of the line is 0xe4"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', "malformed JSON", "x.jsonl:2"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "malformed JSON", "x.jsonl:2: a list, not an object"),
        ("x.jsonl", b'{"a": 1}\n{"b": 1, "b": 2}\n', "malformed JSON", "x.jsonl:2: the key 'b' appears twice"),
        ("x.jsonl", b'{"a": 1}\n{"b": "\\ud800"}\n', "malformed JSON", "x.jsonl:2"),
        ("x.jsonl", b'{"a": 1}\n\n{"a": 3}\n', "empty row", "x.jsonl:2"),
        ("x.csv", b"a,b\n1,2\n\n3,4\n", "empty row", "x.csv:3"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", "malformed CSV", "x.csv:3: 3 cells, the header has 2"),
        ("x.csv", b"a,a\n1,2\n", "malformed CSV", "x.csv:1: the header has 'a' twice"),
        ("x.csv", b'a,b\n1,"open\n', "malformed CSV", "x.csv:2"),
        ("x.jsonl", b"", "empty file", "x.jsonl"),
        ("x.csv", b"a,b\n", "empty file", "x.csv"),
        ("x.parquet", b"PAR1 not", "unreadable file", "x.parquet"),
        ("x.jsonl.gz", b"not gzip", "unreadable file", "x.jsonl.gz"),
        ("x.jsonl.xz", lzma.compress(JSONL)[:-9], "unreadable file", "x.jsonl.xz"),
        ("x.txt", b"a", "unknown format", "x.txt"),
    ],
)
def test_read_file_defect_is_noted_with_file_and_line(tmp_path, name, content, kind, place):
    _, log = _read(tmp_path, name, content)
    [problem] = log.problems
    assert (problem.kind, problem.count) == (kind, 1)
    assert problem.examples[0].startswith(place)
    assert problem.advice


def test_read_file_one_broken_line_leaves_the_others(tmp_path):
    records, _ = _read(tmp_path, "x.jsonl", b'{"a": 1}\n\xff\n{"a": 3}\n')
    assert [record.origin for record in records] == ["x.jsonl:1", "x.jsonl:3"]


def test_read_file_missing_file_is_noted(tmp_path):
    log = ProblemLog()
    assert not list(read_file(tmp_path / "no.jsonl", "no.jsonl", log))
    assert log.problems[0].kind == "missing file"
    assert str(tmp_path) in log.problems[0].examples[0]


def test_read_file_csv_cell_nan_is_a_missing_value(tmp_path):
    records, _ = _read(tmp_path, "x.csv", b"a,b\nNaN,nancy\n")
    assert records[0].values == {"a": None, "b": "nancy"}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz", "x.csv.xz"]),
    st.binary(max_size=60) | st.text(alphabet='{}[]":,\n\r\\u0a1', max_size=60).map(str.encode),
)
def test_read_file_any_bytes_give_records_or_a_note(tmp_path_factory, name, content):
    records, log = _read(tmp_path_factory.mktemp("bytes"), name, content)
    assert records or log.count
    for record in records:
        json.dumps(record.values, ensure_ascii=False, default=str).encode()
