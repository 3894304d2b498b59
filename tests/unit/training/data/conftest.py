"""Small data files, written by the test that reads them."""

import json

import pytest


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSONL and return the folder, which is the data folder."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path

    return write
