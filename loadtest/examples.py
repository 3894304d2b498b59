"""Texts to send, with references where there are any: the shipped samples, or any JSON-lines file (``.xz`` too).

A line is an object with ``dialogue`` (or ``text``), optionally ``id``, ``split``, ``summaries`` and ``topics`` (lists).
This is the form of DialogSum and of the other files Medley trains on. Knows no server.
"""

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

SHIPPED_EXAMPLES = Path(__file__).parent / "samples" / "dialogues.jsonl"


class ExampleFileError(ValueError):
    """A file of examples that cannot be used; says which line and why."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text to summarize.

    Attributes:
        name: Its id, or its line number.
        text: The text, never blank.
        summaries: Reference summaries, possibly none.
        topics: Reference titles, possibly none.
    """

    name: str
    text: str
    summaries: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()


def read_examples(path: Path, split: str | None = None, limit: int | None = None) -> list[Example]:
    """Read examples from a file.

    Args:
        path: A ``.jsonl`` or ``.jsonl.xz`` file.
        split: Keep only lines whose ``split`` is this; all when None.
        limit: Keep at most this many, the first ones.

    Raises:
        ExampleFileError: If the file cannot be read, a line is not as described, or no line is left.
    """
    try:
        with _open(path) as lines:
            examples = list(islice(_parse(path, lines, split), limit))
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ExampleFileError(f"cannot read {path}: {error}") from error
    if not examples:
        raise ExampleFileError(f"{path} has no example" + (f" of split {split!r}" if split else ""))
    return examples


def _open(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(path: Path, lines: TextIO, split: str | None) -> Iterator[Example]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExampleFileError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ExampleFileError(f"{path}:{number}: a line must be a JSON object")
        if split is None or fields.get("split") == split:
            yield _example(fields, f"{path}:{number}", str(number))


def _example(fields: dict[str, object], where: str, number: str) -> Example:
    text = fields.get("dialogue", fields.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise ExampleFileError(f"{where}: needs a non-empty string 'dialogue' or 'text'")
    return Example(
        name=str(fields.get("id", number)),
        text=text,
        summaries=_strings(fields, "summaries", where),
        topics=_strings(fields, "topics", where),
    )


def _strings(fields: dict[str, object], key: str, where: str) -> tuple[str, ...]:
    values = fields.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ExampleFileError(f"{where}: '{key}' must be a list of strings")
    return tuple(values)
