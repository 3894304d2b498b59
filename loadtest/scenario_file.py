"""Scenario files: YAML in, a checked scenario out, and errors that say which key is wrong and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from loadtest.scenario import Scenario
from loadtest.spec import FOLDER

SHIPPED = Path(__file__).parent / "scenarios"
_SUFFIX = ".yaml"

_scenarios = TypeAdapter(Scenario)

Override = tuple[str, object]
"""A dotted key and its value."""


class ScenarioError(ValueError):
    """A scenario that cannot be run; says why, one line a fault."""


def shipped_names() -> list[str]:
    """Return the names of the scenarios that ship."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{_SUFFIX}"))


def load_scenario(source: str, overrides: Sequence[Override] = ()) -> Scenario:
    """Return a scenario.

    Args:
        source: A YAML file, or the name of a shipped scenario.
        overrides: Put over what the file says, in order; None takes a key away.

    Raises:
        ScenarioError: If the file cannot be read, or does not describe a scenario.
    """
    path = _path_of(source)
    raw = _read(path)
    for key, value in overrides:
        _put(raw, key, value)
    try:
        return _scenarios.validate_python(raw, context={FOLDER: path.parent.absolute()})
    except ValidationError as error:
        raise ScenarioError("\n".join([f"{path}:", *(f"  {line}" for line in _explained(error))])) from error


def parse_override(text: str) -> Override:
    """Parse ``key.of.it=value``; the value is YAML.

    Raises:
        ScenarioError: If there is no ``=`` or the value is no YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ScenarioError(f"--set {text!r}: write key.of.it=value")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ScenarioError(f"--set {text!r}: the value is no YAML: {error}") from error


def as_json(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario as plain JSON values, every default written out."""
    dumped: dict[str, Any] = _scenarios.dump_python(scenario, mode="json")
    return dumped


def from_json(values: Mapping[str, Any]) -> Scenario:
    """Return the scenario that :func:`as_json` wrote."""
    return _scenarios.validate_python(dict(values))


def _path_of(source: str) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if source in shipped_names():
        return SHIPPED / f"{source}{_SUFFIX}"
    raise ScenarioError(f"there is no scenario {source!r}: give a file, or one of {', '.join(shipped_names())}")


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ScenarioError(f"cannot read the scenario {path}: {error}") from error
    if not isinstance(raw, dict):
        raise ScenarioError(f"{path}: a scenario is a mapping of keys, such as name, arrivals and adapters")
    return {"name": path.stem, **raw}


def _put(raw: dict[str, Any], key: str, value: object) -> None:
    *above, last = key.split(".")
    for part in above:
        inner = raw.get(part)
        if not isinstance(inner, dict):
            inner = {}
        # A copy: YAML's anchors may stand for one mapping in two places.
        raw[part] = inner = dict(inner)
        raw = inner
    if value is None:
        raw.pop(last, None)
    else:
        raw[last] = value


def _explained(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        key = ".".join(_without_tags(fault["loc"]))
        if fault["type"] == "unexpected_keyword_argument":
            reason = f"unknown key; there are {', '.join(_keys_at(fault['loc'][:-1]))}"
        elif fault["type"] == "missing":
            reason = "must be given"
        else:
            said = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
            shown = isinstance(fault["input"], str | int | float)
            reason = said + (f", not {fault['input']!r}" if shown else "")
        lines.append(f"{key}: {reason}" if key else reason)
    return lines


def _without_tags(location: Sequence[str | int]) -> list[str]:
    """Return the keys of a location; a union's tag is in it, but not in the file."""
    kept, place = [], Scenario
    for part in location:
        options = _options(place)
        if len(options) > 1 and any(_kind(option) == part for option in options):
            place = next(option for option in options if _kind(option) == part)
            continue
        kept.append(str(part))
        place = _field(options[0], part) if options else None
    return kept


def _keys_at(location: Sequence[str | int]) -> list[str]:
    place: Any = Scenario
    for part in location:
        options = _options(place)
        tagged = [option for option in options if _kind(option) == part]
        place = tagged[0] if len(options) > 1 and tagged else _field(options[0], part)
    return [field.name for field in fields(_options(place)[0])]


def _options(place: Any) -> list[Any]:
    """Return the dataclasses a value may be."""
    while get_origin(place) is not None and get_origin(place) not in {Union, UnionType}:
        place = get_args(place)[0]
    parts = get_args(place) if get_origin(place) in {Union, UnionType} else (place,)
    nested = [_options(part) if get_origin(part) is not None else [part] for part in parts]
    return [option for options in nested for option in options if is_dataclass(option)]


def _field(owner: Any, name: str | int) -> Any:
    return get_type_hints(owner).get(str(name))


def _kind(option: Any) -> object:
    return next((field.default for field in fields(option) if field.name == "kind"), None)
