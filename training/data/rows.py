"""Read one source's files into rows of checked fields: every field there, of the right type, none empty, no id twice.

It knows columns and fields. It does not know templates or splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.config import DataFile, DataSource
from training.data.hub import HUB_PREFIX, read_folder, read_hub
from training.data.problems import ProblemLog
from training.data.readers import EMPTY_ADVICE, Record, read_file

TEXT, REFERENCES = "text", "references"
_PROMPT_COMPLETION = {TEXT: "prompt", REFERENCES: "completion"}
_BESIDE = ("id", "split")
_TYPES = (str, int, float, list, dict)


@dataclass(frozen=True)
class Row:
    """One record's fields under the names templates use; `references` is a tuple of texts."""

    values: dict[str, object]
    origin: str
    split: str


@dataclass(frozen=True)
class SourceRows:
    """The sound rows of a source, and the columns that nothing asked for."""

    rows: list[Row]
    unused_columns: tuple[str, ...]


def column_names(source: DataSource, fields: Iterable[str]) -> dict[str, str]:
    """Return the column each of `fields` is read from.

    Raises:
        Nothing.
    """
    columns = source.columns or ({} if source.templates else _PROMPT_COMPLETION)
    return {name: columns.get(name, name) for name in sorted(fields)}


def read_rows(source: DataSource, fields: Iterable[str], data_dir: Path, log: ProblemLog) -> SourceRows:
    """Read every file of `source`; what is wrong with a row is noted in `log`, and the row left out.

    Raises:
        Nothing.
    """
    columns = column_names(source, fields)
    id_column = source.columns.get("id", "id")
    first_with_id: dict[tuple[str, str], str] = {}
    unused: set[str] = set()
    rows: list[Row] = []
    for record in _records(source.files, data_dir, log):
        unused |= record.values.keys()
        identity = record.values.get(id_column)
        if identity is not None:
            earlier = first_with_id.setdefault((record.split, str(identity)), record.origin)
            if earlier != record.origin:
                detail = f"id {str(identity)!r} is that of {earlier}, too"
                log.add("duplicate id", record.origin, detail, "give every record of a split an id of its own")
        if values := _values(record, columns, log):
            rows.append(Row(values, record.origin, record.split or "train"))
    return SourceRows(rows, tuple(sorted(unused - set(columns.values()) - {*_BESIDE, id_column})))


def file_records(name: str, data_dir: Path, log: ProblemLog) -> Iterator[Record]:
    """Give the records of a file, a folder or a hub id, as a recipe names it.

    Raises:
        Nothing. What cannot be read is noted in `log`.
    """
    if name.startswith(HUB_PREFIX):
        return read_hub(name, log)
    path = data_dir / name
    return read_folder(path, name, log) if path.is_dir() else read_file(path, name, log)


def _records(files: Iterable[DataFile], data_dir: Path, log: ProblemLog) -> Iterator[Record]:
    for file in files:
        for record in file_records(file.path, data_dir, log):
            if not file.split or record.split == file.split:
                yield record
            elif not record.split:
                yield Record(record.values, record.origin, file.split)


def _values(record: Record, columns: Mapping[str, str], log: ProblemLog) -> dict[str, object]:
    """Return the fields of a record, or nothing if one of them is not as it must be."""
    absent = [f"{column!r} (for `{name}`)" for name, column in columns.items() if column not in record.values]
    if absent:
        detail = f"no column {', '.join(absent)}; there are {', '.join(map(repr, record.values)) or 'none'}"
        advice = "correct the file, or map the field to a column under `columns` of the source"
        log.add("missing column", record.origin, detail, advice)
        return {}
    values = {name: _checked(name, record, column, log) for name, column in columns.items()}
    return {} if None in values.values() else values


def _checked(name: str, record: Record, column: str, log: ProblemLog) -> object | None:
    """Return a cell that may be used as the field `name`, or None, with the reason in `log`."""
    cell = record.values[column]
    several = name == REFERENCES and isinstance(cell, list)
    parts = cell if several else [cell]
    wanted = (str,) if name in {TEXT, REFERENCES} else _TYPES
    if not parts or any(isinstance(part, str) and not part.strip() for part in parts):
        log.add("empty row", record.origin, f"the column {column!r} is empty", EMPTY_ADVICE)
    elif any(part is None or (isinstance(part, float) and math.isnan(part)) for part in parts):
        log.add("missing value", record.origin, f"the column {column!r} holds null or NaN", EMPTY_ADVICE)
    elif not all(isinstance(part, wanted) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
        advice = "`text` is a text, `references` one or a list of texts, other fields texts, numbers, lists or mappings"
        log.add("wrong type", record.origin, f"the column {column!r} holds {kinds}", advice)
    else:
        return tuple(parts) if name == REFERENCES else cell
    return None
