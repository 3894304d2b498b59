"""The files of an adapter: which may be there, how large, and where PEFT puts them.

Knows names and sizes, not formats. Functions may be called from any thread.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from adapters.manifest import MANIFEST_FILE
from adapters.strict_json import show

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ALLOWED_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE, MANIFEST_FILE, "card.md", "README.md"})

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_MAX_NUM_ENTRIES = 64


def check_file_name(name: str) -> str:
    """Return ``name`` if an adapter may have a file of that name; it is then safe to use as a path component.

    Raises:
        UnsupportedAdapterError: If it is the name of a format that can run code when it is loaded.
        InvalidAdapterError: If it is any other name.
    """
    if name in ALLOWED_FILES:
        return name
    if name.lower().endswith(_PICKLE_SUFFIXES):
        raise UnsupportedAdapterError(
            f"{show(name)} is refused: such files can run code; save as safetensors (safe_serialization=True)"
        )
    raise InvalidAdapterError(f"unexpected file {show(name)}; an adapter has {', '.join(sorted(ALLOWED_FILES))} only")


def adapter_files(folder: Path) -> dict[str, Path]:
    """Return the adapter's files: name → path.

    PEFT puts an adapter that is not called "default" into a sub-folder; one such sub-folder is looked into.

    Raises:
        InvalidAdapterError: If a file is missing, unexpected, doubled, or anything but a regular file.
        OSError: If the folder cannot be read.
    """
    files: dict[str, Path] = {}
    folders = _collect(folder, files)
    if len(folders) > 1 or (folders and (CONFIG_FILE in files or WEIGHTS_FILE in files)):
        raise InvalidAdapterError("the folder holds more than one adapter; send one of them")
    if folders and _collect(folders[0], files):
        raise InvalidAdapterError("the folder is nested too deep; send the folder that holds " + CONFIG_FILE)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise InvalidAdapterError(f"{name} is missing; send the folder that PEFT's save_pretrained wrote")
    return files


def check_sizes(files: Mapping[str, Path], max_weights_bytes: int, max_text_bytes: int) -> None:
    """Accept files within the limits: one for the weights, one for each other file.

    Raises:
        AdapterTooLargeError: If one is too large.
        OSError: If one cannot be looked at.
    """
    for name, path in files.items():
        limit = max_weights_bytes if name == WEIGHTS_FILE else max_text_bytes
        if path.stat().st_size > limit:
            raise AdapterTooLargeError(f"{name} has {path.stat().st_size} bytes; at most {limit} are taken")


def _collect(folder: Path, files: dict[str, Path]) -> list[Path]:
    folders = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= _MAX_NUM_ENTRIES:
                raise AdapterTooLargeError(f"the folder has more than {_MAX_NUM_ENTRIES} entries")
            if entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
            elif not entry.is_file(follow_symlinks=False):
                raise InvalidAdapterError(f"{show(entry.name)} is a link or no regular file")
            elif check_file_name(entry.name) in files:
                raise InvalidAdapterError(f"{entry.name} is there twice, in the folder and in its sub-folder")
            else:
                files[entry.name] = folder / entry.name
    return folders
