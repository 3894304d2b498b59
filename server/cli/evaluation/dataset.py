"""A data set with references, read from JSON lines (``.xz`` too). Knows no server.

A line is an object with ``text`` (or ``dialogue``) and ``references`` (or ``reference``, ``summaries``, ``summary``),
a text or a list of texts; optionally ``id`` and ``split``. The files Medley trains and load-tests on are of this form.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_TEXT_KEYS = ("text", "dialogue")
_REFERENCE_KEYS = ("references", "reference", "summaries", "summary")


class DatasetError(ValueError):
    """A file that cannot be used; says which line and why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One text with what people wrote of it.

    Attributes:
        name: Its id, or its line number.
        text: What is sent.
        references: What the answer is compared with, one or more.
    """

    name: str
    text: str
    references: tuple[str, ...]


def read_cases(path: Path, split: str | None = None) -> list[Case]:
    """Read a data set.

    Args:
        path: The file.
        split: Keep only lines whose ``split`` is this; all when None.

    Raises:
        DatasetError: If it cannot be read, a line is not as described, or no line is left.
    """
    try:
        with _open(path) as lines:
            cases = list(_parse(path, lines, split))
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if not cases:
        raise DatasetError(f"{path} has no case" + (f" of split {split!r}" if split else ""))
    return cases


def digest_cases(cases: Sequence[Case]) -> str:
    """Return SHA-256 over texts and references: the same for the same data, wherever its file lies."""
    found = hashlib.sha256()
    for case in cases:
        found.update(json.dumps([case.text, case.references]).encode())
    return found.hexdigest()


def _open(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(path: Path, lines: TextIO, split: str | None) -> Iterator[Case]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{where}: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DatasetError(f"{where}: a line must be a JSON object")
        if split is None or fields.get("split") == split:
            yield Case(str(fields.get("id", number)), _text(fields, where), _references(fields, where))


def _text(fields: Mapping[str, object], where: str) -> str:
    text = _first(fields, _TEXT_KEYS)
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{where}: needs a text in one of {', '.join(_TEXT_KEYS)}")
    return text


def _references(fields: Mapping[str, object], where: str) -> tuple[str, ...]:
    found = _first(fields, _REFERENCE_KEYS)
    several = [found] if isinstance(found, str) else found
    if not isinstance(several, list) or not several or not all(isinstance(each, str) and each for each in several):
        raise DatasetError(
            f"{where}: needs a reference in one of {', '.join(_REFERENCE_KEYS)}: a text or a list of texts"
        )
    return tuple(several)


def _first(fields: Mapping[str, object], keys: Sequence[str]) -> object:
    return next((fields[key] for key in keys if key in fields), None)
