"""Fields of PEFT's ``adapter_config.json``: read with their types and ranges, and the refusal of those nobody computes.

A field is taken only if it is known to leave inference alone or is computed by the adapter's family; any other field
must be off (null, false, empty), so that a newer PEFT cannot slip a new behaviour past us. Which modules an adapter
changes is read from its tensors, never from ``target_modules``. Knows no family. Functions may be called from any
thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py (``get_pattern_key``).
"""

import re
import sys
from collections.abc import Callable, Mapping, Set
from typing import TypeVar

from adapters.adapter_folder import CONFIG_FILE
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from adapters.manifest import check_shown
from adapters.strict_json import show

Value = TypeVar("Value")

ABOUT_ORIGIN = frozenset(
    {
        *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path"),
        *("revision", "inference_mode"),
    }
)
# These say where to put new layers; the tensors say where they are. Adapters are stored the same way round whichever
# way the base keeps its own weight (fan_in_fan_out).
ABOUT_PLACES = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias"}
)
_FIELD_NAMES = {"modules_to_save": "modules_to_save (full copies of base layers)"}

_MAX_PATTERNS = 1024
_MAX_PATTERN_CHARS = 256
_MAX_WILD_PATTERNS = 32
_MAX_REPEATS = 2
_MAX_ALTERNATIVES = 16
# One part of a pattern: a literal, a class, an escape or a dot, perhaps repeated; an anchor; a group's bracket, never
# repeated. Whatever else Python takes (look-around, counted or nested repeats, back-references) could run for ever.
_PATTERN_PART = re.compile(
    r"(?:[A-Za-z0-9_\-.]|\\[dw.]|\[(?:\w(?:-\w)?)+\])(?P<repeat>[*+?]?)|\(\?:|[\^$(]|\)(?![*+?{])|\|",
    re.ASCII,
)


def refuse_other_fields(raw: Mapping[str, object], known: Set[str]) -> None:
    """Accept a config whose fields are known or off.

    Raises:
        UnsupportedAdapterError: If another field switches something on.
    """
    for key, value in raw.items():
        if key not in known and value not in (None, False, "", [], {}):
            name = _FIELD_NAMES.get(key, show(key))
            raise UnsupportedAdapterError(f"{name} is not supported; train the adapter without it ({CONFIG_FILE})")


def base_model_of(raw: Mapping[str, object]) -> str:
    """Return the name of the base, for people; empty when unknown.

    Raises:
        InvalidAdapterError: If it is no text, too long, or not fit to be shown.
    """
    name = raw.get("base_model_name_or_path") or ""
    if not isinstance(name, str):
        raise InvalidAdapterError(f"{CONFIG_FILE}: base_model_name_or_path must be text")
    return check_shown(name, f"{CONFIG_FILE}: base_model_name_or_path")


def flag(raw: Mapping[str, object], key: str) -> bool:
    """Return a field that is on or off; off when missing.

    Raises:
        InvalidAdapterError: If it is neither true nor false.
    """
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be true or false")
    return value


def count(value: object, key: str) -> int:
    """Return the value of the field ``key`` as a whole number of 1 or more.

    Raises:
        InvalidAdapterError: If it is anything else, or 2^31 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be a whole number of 1 or more, not {show(value)}")
    return value


def number(value: object, key: str) -> float:
    """Return the value of the field ``key`` as a finite number.

    Raises:
        InvalidAdapterError: If it is anything else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be a finite number, not {show(value)}")
    return float(value)


def patterns(raw: Mapping[str, object], key: str, read: Callable[[object, str], Value]) -> dict[re.Pattern[str], Value]:
    """Return a field that maps patterns of module paths to values, in the file's order.

    Raises:
        InvalidAdapterError: If it is no such mapping, or a pattern or value is malformed.
        UnsupportedAdapterError: If a pattern could run for ever.
        AdapterTooLargeError: If there are too many patterns.
    """
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must map module patterns to numbers")
    num_wild = sum(any(sign in pattern for sign in "*+?|") for pattern in found)
    if len(found) > _MAX_PATTERNS or num_wild > _MAX_WILD_PATTERNS:
        raise AdapterTooLargeError(
            f"{CONFIG_FILE}: {key} takes at most {_MAX_PATTERNS} modules, {_MAX_WILD_PATTERNS} of them with wildcards"
        )
    return {_compile(pattern, key): read(value, key) for pattern, value in found.items()}


def first_match(found: Mapping[re.Pattern[str], Value], path: str, default: Value) -> Value:
    """Return the value of the first pattern that matches a module path, else ``default``."""
    return next((value for pattern, value in found.items() if pattern.match(path)), default)


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    parts = list(_PATTERN_PART.finditer(pattern[:_MAX_PATTERN_CHARS]))
    num_repeats = sum(bool(part["repeat"]) for part in parts)
    is_plain = "".join(part[0] for part in parts) == pattern
    if not is_plain or num_repeats > _MAX_REPEATS or pattern.count("|") > _MAX_ALTERNATIVES or pattern.count("(") > 1:
        raise UnsupportedAdapterError(
            f"{CONFIG_FILE}: the pattern {show(pattern)} in {key} is not supported; use module names, at most one "
            f"group of alternatives and {_MAX_REPEATS} wildcards"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise InvalidAdapterError(f"{CONFIG_FILE}: the pattern {show(pattern)} in {key} is malformed") from error
