"""JSON objects from strangers: strict where Python's own reader is lenient, with messages that are safe to show.

Knows no adapter fields. Every function may be called from any thread.
"""

import json
from typing import NoReturn

from adapters.errors import InvalidAdapterError

_MAX_DEPTH = 16
_MAX_SHOWN_CHARS = 80


def parse_object(data: bytes, what: str) -> dict[str, object]:
    """Return the JSON object in ``data``.

    Args:
        data: UTF-8 bytes; the caller has limited their number.
        what: What is read, for the message.

    Raises:
        InvalidAdapterError: If it is not valid UTF-8 or JSON, is no object, repeats a key, holds NaN or an infinity, or
            is nested deeper than 16 levels.
    """
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        _check_nodes(raw, _MAX_DEPTH)
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
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidAdapterError(f"the key {show(key)} appears twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidAdapterError(f"{name} is not JSON")


def _check_nodes(value: object, num_levels: int) -> None:
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is a ValueError, here rather than in a database
    if not isinstance(value, dict | list):
        return
    if num_levels == 0:
        raise InvalidAdapterError(f"it is nested deeper than {_MAX_DEPTH} levels")
    for child in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
        _check_nodes(child, num_levels - 1)
