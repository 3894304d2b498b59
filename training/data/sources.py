"""Read the training corpora: plain dialogue texts, books, summaries and small labelled tasks.

It knows file names and line formats. It does not know tokenizers, tasks or models.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingDataError

DIALOGUE_TEXTS = ("sgd", "self_dialogue", "crd3", "taskmaster4")
_STAGE_DIRECTION = re.compile(r"\s*\([^()]{1,30}\)")
_TURN = re.compile(r"^([A-Za-z#][^:\n]{0,30}):[ \t]+(.+)$")


@dataclass(frozen=True)
class Turn:
    """One speaker's utterance, without its line end."""

    speaker: str
    text: str


@dataclass(frozen=True)
class SummaryRecord:
    """One dialogue with its written summaries, titles and (where given) alignment score."""

    id: str
    split: str
    dialogue: str
    summaries: tuple[str, ...]
    topics: tuple[str, ...]
    score: float | None


def open_text(data_dir: Path, relative: str) -> str:
    """Return one xz-compressed UTF-8 file as text.

    Raises:
        TrainingDataError: the file is missing.
    """
    path = data_dir / relative
    if not path.is_file():
        raise TrainingDataError(f"training data file not found: {relative} (looked in {data_dir})")
    with lzma.open(path, "rt", encoding="utf-8") as handle:
        return handle.read()


def parse_turns(text: str) -> list[Turn]:
    """Split `Speaker: utterance` lines into turns; a line without a speaker continues the turn before it.

    Raises:
        Nothing. Text without any speaker gives an empty list.
    """
    turns: list[Turn] = []
    for line in text.split("\n"):
        match = _TURN.match(line)
        if match:
            turns.append(Turn(match.group(1).strip(), match.group(2).strip()))
        elif turns and line.strip():
            turns[-1] = Turn(turns[-1].speaker, f"{turns[-1].text} {line.strip()}")
    return turns


def read_dialogues(data_dir: Path, name: str) -> list[list[Turn]]:
    """Return the dialogues of one plain-dialogue corpus; CRD3's stage directions are dropped.

    Raises:
        TrainingDataError: the file is missing.
    """
    text = open_text(data_dir, f"text/{name}.txt.xz")
    if name == "crd3":
        text = _STAGE_DIRECTION.sub("", text)
    parsed = (parse_turns(block) for block in re.split(r"\n\s*\n", text))
    return [turns for turns in parsed if len(turns) >= 2]


def read_paragraphs(data_dir: Path, name: str = "gutenberg", min_chars: int = 200) -> list[str]:
    """Return the running-text paragraphs of a book corpus that have at least `min_chars` characters.

    Raises:
        TrainingDataError: the file is missing.
    """
    blocks = open_text(data_dir, f"text/{name}.txt.xz").split("\n")
    return [block.strip() for block in blocks if len(block) >= min_chars]


def read_summaries(data_dir: Path, name: str) -> list[SummaryRecord]:
    """Return every record of one summary data set, all splits.

    Raises:
        TrainingDataError: the file is missing.
    """
    rows = _json_lines(open_text(data_dir, f"summaries/{name}.jsonl.xz"))
    return [
        SummaryRecord(
            id=str(row["id"]),
            split=str(row["split"]),
            dialogue=str(row["dialogue"]),
            summaries=tuple(row["summaries"]),
            topics=tuple(row.get("topics") or ()),
            score=row.get("score"),
        )
        for row in rows
    ]


def read_task(data_dir: Path, name: str, split: str) -> list[dict[str, str]]:
    """Return the records of one labelled task's split, as they are in the file.

    Raises:
        TrainingDataError: the file is missing.
    """
    return [row for row in _json_lines(open_text(data_dir, f"tasks/{name}.jsonl.xz")) if row["split"] == split]


def _json_lines(text: str) -> Iterator[dict]:
    return (json.loads(line) for line in text.splitlines() if line.strip())
