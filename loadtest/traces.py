"""Trace files: what was asked of a real server and when, one JSON object a line.

A line may have ``at_s`` (seconds from the start, not falling) and ``adapters`` (a list of references, empty for the
base). Knows nothing of what is done with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path


class TraceFileError(ValueError):
    """A trace that cannot be used; says which line and why."""


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of a trace.

    Attributes:
        at_s: When it was sent; None if the trace does not say.
        adapters: What it asked for; None if the trace does not say.
    """

    at_s: float | None
    adapters: tuple[str, ...] | None


def read_trace(path: Path) -> list[TraceLine]:
    """Read a trace.

    Raises:
        TraceFileError: If the file cannot be read, a line is not as described, or there is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceFileError(f"cannot read the trace {path}: {error}") from error
    lines = [_line(f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise TraceFileError(f"the trace {path} has no line")
    return lines


def _line(where: str, line: str) -> TraceLine:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceFileError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise TraceFileError(f"{where}: a line must be a JSON object")
    at_s, adapters = fields.get("at_s"), fields.get("adapters")
    if at_s is not None and (not isinstance(at_s, int | float) or isinstance(at_s, bool) or not 0 <= at_s < 1e9):
        raise TraceFileError(f"{where}: 'at_s' must be a number of seconds, 0 or more")
    if adapters is None:
        return TraceLine(at_s, None)
    if not isinstance(adapters, list) or not all(isinstance(name, str) and name for name in adapters):
        raise TraceFileError(f"{where}: 'adapters' must be a list of names")
    return TraceLine(at_s, tuple(adapters))
