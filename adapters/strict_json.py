"""JSON objects from strangers: strict where Python's own reader is lenient, with messages that are safe to show.

Knows no adapter fields. Every function may be called from any thread.
"""

import json
import math
from collections import Counter
from typing import NoReturn

from adapters.errors import InvalidAdapterError

_MAX_DEPTH = 16
# Each costs up to thirty times its two brackets once it is read.
_MAX_NUM_BRACKETS = 1 << 18
_MAX_SHOWN_CHARS = 80
_CONTAINERS = (dict, list)


def parse_object(data: bytes, what: str) -> dict[str, object]:
    """Return the JSON object in ``data``.

    Args:
        data: UTF-8 bytes; the caller has limited their number.
        what: What is read, for the message.

    Raises:
        InvalidAdapterError: If it is not valid UTF-8 or JSON, is no object, repeats a key, holds a number that is not
            finite as a float, is nested deeper than 16 levels, or holds more than 262,144 objects and lists.
    """
    try:
        text = data.decode()
        if text.count("[") + text.count("{") > _MAX_NUM_BRACKETS:
            raise InvalidAdapterError("it holds too many objects and lists")
        raw = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant, parse_float=_finite)
        _check_depth(raw)
        # UTF-8 cannot hold half a surrogate pair, but an escape can spell it: an error here rather than in a database.
        if "\\u" in text:
            json.dumps(raw, ensure_ascii=False).encode()
    except InvalidAdapterError as error:
        raise InvalidAdapterError(f"{what}: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{what} is not valid JSON in UTF-8") from error
    if not isinstance(raw, dict):
        raise InvalidAdapterError(f"{what} must be a JSON object")
    return raw


def show(value: object) -> str:
    """Return a stranger's value for a message: quoted, in printable ASCII, at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise InvalidAdapterError(f"the key {show(repeated)} appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidAdapterError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidAdapterError(f"the number {show(text)} is too large")
    return number


def _check_depth(value: object) -> None:
    # Level by level, and only what can hold more: a header is mostly numbers and names.
    level: list[dict[str, object] | list[object]] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, _CONTAINERS)
        ]
        if not level:
            return
    raise InvalidAdapterError(f"it is nested deeper than {_MAX_DEPTH} levels")
