"""One run of a study, done once: its folder holds its figures, or the error that ended it. It knows no study.

A finished run is never done again under the same settings; one that failed is tried again the next time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIGURES, _ERROR = "figures.json", "error.txt"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its figures, or one line that says why there are none."""

    name: str
    figures: dict[str, Any] | None
    error: str = ""


def run_once(folder: Path, settings: object, work: Callable[[Path], dict[str, Any]]) -> Outcome:
    """Do `work` in `folder` unless it is done already under the same settings; an error becomes the outcome.

    Args:
        folder: of this run alone; emptied before the work begins.
        settings: all that the figures depend on, as plain JSON values.
        work: gets the folder, and returns figures as plain JSON values.

    Raises:
        OSError: the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    record = _read(folder / _FIGURES)
    if record and record["key"] == key:
        say(f"{folder.name}: done before")
        return Outcome(folder.name, record["figures"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    say(f"{folder.name}: begins")
    try:
        figures = work(folder)
    # Whatever ends one run must not end the study; it is reported.
    except Exception as error:
        (folder / _ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        say(f"{folder.name}: failed, see {folder / _ERROR}")
        return Outcome(folder.name, None, _one_line(error))
    partial = folder / f"{_FIGURES}.partial"
    partial.write_text(json.dumps({"key": key, "figures": figures}), encoding="utf-8")
    partial.replace(folder / _FIGURES)
    say(f"{folder.name}: done in {(time.monotonic() - started) / 60:.1f} min")
    return Outcome(folder.name, figures)


def say(line: str) -> None:
    """Tell the user how far the study is.

    Raises:
        Nothing.
    """
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
