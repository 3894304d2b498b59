"""Read records from JSONL, CSV, TSV and Parquet files, plain or compressed with gzip or xz, each with file and line.

What cannot be read is noted, not skipped. It does not know what the columns mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.problems import ProblemLog

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
EMPTY_ADVICE = "remove the row, or fill what is empty"
_OPENERS = {".gz": gzip.decompress, ".xz": lzma.decompress}


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file; `origin` is `file:line`, and counts rows from 1 in Parquet files."""

    values: dict[str, object]
    origin: str
    split: str


def read_file(path: Path, shown: str, log: ProblemLog) -> Iterator[Record]:
    """Give the records of one file; `shown` is its name in origins.

    A record's split is its `split` column, or nothing.

    Raises:
        Nothing. A file that is missing, broken or of an unknown format is noted in `log`.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in FORMATS:
        advice = f"use one of {', '.join(FORMATS)}, or add .gz or .xz to it"
        log.add("unknown format", shown, f"the name ends in {kind or 'nothing'}", advice)
        return
    before = log.count
    data = _bytes(path, shown, compression, log)
    if data is None:
        return
    rows = _parquet(data, shown, log) if kind == ".parquet" else _text_rows(data, shown, kind, log)
    found = False
    for number, values in rows:
        found = True
        split = values.get("split")
        yield Record(values, f"{shown}:{number}", split if isinstance(split, str) else "")
    if not found and log.count == before:
        log.add("empty file", shown, "no records", "remove the file from the recipe, or fill it")


def _bytes(path: Path, shown: str, compression: str, log: ProblemLog) -> bytes | None:
    try:
        data = path.read_bytes()
        return _OPENERS[compression](data) if compression else data
    except FileNotFoundError:
        log.add("missing file", shown, f"not found at {path}", "check the path and the data folder (--data)")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        log.add("unreadable file", shown, str(error) or type(error).__name__, "make or download the file again")
    return None


def _text_rows(data: bytes, shown: str, kind: str, log: ProblemLog) -> Iterator[tuple[int, dict[str, object]]]:
    lines = _decoded(data, shown, log)
    if kind == ".jsonl":
        return _json_lines(lines, shown, log)
    # A quoted cell may span lines, so that one broken line may move the meaning of all that follow.
    whole = [line for line in lines if line is not None]
    return _csv(whole, shown, "\t" if kind == ".tsv" else ",", log) if len(whole) == len(lines) else iter(())


def _decoded(data: bytes, shown: str, log: ProblemLog) -> list[str | None]:
    """Return the lines of UTF-8 bytes, None for broken ones; the end of the last line begins no other."""
    lines: list[str | None] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            lines.append(None)
            detail = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
            log.add("broken UTF-8", f"{shown}:{number}", detail, "save the file as UTF-8")
    return lines


def _json_lines(lines: list[str | None], shown: str, log: ProblemLog) -> Iterator[tuple[int, dict[str, object]]]:
    advice = "write one JSON object a line, its keys each once"
    for number, line in enumerate(lines, start=1):
        if line is None:
            continue
        if not line.strip():
            if len(lines) > 1:
                log.add("empty row", f"{shown}:{number}", "a blank line", EMPTY_ADVICE)
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
            # UTF-8 cannot hold half a surrogate pair, but an escape can spell it.
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            log.add("malformed JSON", f"{shown}:{number}", str(error) or "nested too deep", advice)
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            log.add("malformed JSON", f"{shown}:{number}", f"a {type(row).__name__}, not an object", advice)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {repeated!r} appears twice")
    return found


def _csv(lines: list[str], shown: str, delimiter: str, log: ProblemLog) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    advice = "give every row as many cells as the header, and quote cells that hold the delimiter, quotes or lines"
    try:
        for row in reader:
            place, start = start, reader.line_num + 1
            if not row:
                if header is not None:
                    log.add("empty row", f"{shown}:{place}", "a blank line", EMPTY_ADVICE)
                continue
            if header is None:
                header = row
                for name in [name for name, times in Counter(row).items() if times > 1]:
                    log.add("malformed CSV", f"{shown}:{place}", f"the header has {name!r} twice", advice)
            elif len(row) == len(header):
                yield place, {name: _cell(cell) for name, cell in zip(header, row, strict=True)}
            else:
                detail = f"{len(row)} cells, the header has {len(header)}"
                log.add("malformed CSV", f"{shown}:{place}", detail, advice)
    except csv.Error as error:
        log.add("malformed CSV", f"{shown}:{start}", str(error), advice)


def _cell(text: str) -> str | None:
    """Return a cell, or None for what other programs write for a missing value."""
    return None if text in {"NaN", "nan"} else text


def _parquet(data: bytes, shown: str, log: ProblemLog) -> Iterator[tuple[int, dict[str, object]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        log.add("unreadable file", shown, str(error).splitlines()[0], "make or download the file again")
        return iter(())
    return iter(enumerate(rows, start=1))
