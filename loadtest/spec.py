"""How the parts of a scenario are written down: frozen dataclasses that refuse keys they do not know.

Knows no scenario. Paths in a scenario file are relative to that file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo
from pydantic.dataclasses import dataclass

FOLDER = "folder"
"""Key of the validation context: the folder that relative paths start from."""

spec = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
"""Decorator of every part of a scenario."""


def _beside(path: Path, info: ValidationInfo) -> Path:
    folder = info.context.get(FOLDER) if isinstance(info.context, Mapping) else None
    return path if folder is None else folder / path


FilePath = Annotated[Path, AfterValidator(_beside)]
"""A path, relative to the scenario file."""

# More than any client could send: a slip of the pen, not a load.
Rate = Annotated[float, Field(gt=0, le=1e5)]
"""Arrivals per second."""

Seconds = Annotated[float, Field(ge=0, le=7 * 86400)]
"""A duration in seconds, possibly none."""
