"""What a case of the corpus is, and the sound uploads that cases spoil."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from adapters.codec import CodecLimits
from adapters.errors import AdapterError, InvalidAdapterError
from server.core.errors import ErrorCode, MedleyError, code_of
from server.engine.fake import FAKE_BASE
from tests.fixtures.adapters import (
    CONFIG,
    WEIGHTS,
    Array,
    lora_config,
    lora_tensors,
    prompt_config,
    safetensors_bytes,
    with_header,
)

MANIFEST = "medley.json"
Files = Mapping[str, bytes]
# What a server for the corpus must be given, so that cases of size stay small.
LIMITS = CodecLimits(max_file_bytes=4 << 20, max_text_bytes=1 << 18, max_rank=16, max_virtual_tokens=8)
PATHS = sorted(FAKE_BASE.linear_shapes)
A = f"base_model.model.{PATHS[0]}.lora_A.weight"
B = f"base_model.model.{PATHS[0]}.lora_B.weight"


@dataclass(frozen=True)
class Upload:
    """What is sent: files, or an archive, or a source to fetch.

    Attributes:
        files: File name → bytes.
        archive: Bytes of a tar or zip in place of files.
        archive_suffix: What a file with these bytes is called.
        source: Where the server is to fetch it in place of files.
        name: Name it is sent under.
        alias: Alias it asks for.
        tags: Tags it asks for.
    """

    files: Files = field(default_factory=dict)
    archive: bytes = b""
    archive_suffix: str = ".zip"
    source: str = ""
    name: str = "hostile"
    alias: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One hostile upload.

    Attributes:
        title: What is wrong with it, as a file name for people.
        error: What refuses it.
        message: A piece of the message.
        make: Makes the upload.
    """

    title: str
    error: type[AdapterError | MedleyError]
    message: str
    make: Callable[[], Upload]

    @property
    def code(self) -> ErrorCode:
        """The code the wires answer with."""
        return code_of(self.error(""))


class Cases:
    """A part of the corpus: cases by title, in the order they were added."""

    def __init__(self) -> None:
        self.by_title: dict[str, Case] = {}

    def add(
        self, title: str, error: type[AdapterError | MedleyError], message: str, make: Callable[[], Upload]
    ) -> None:
        """Add one upload."""
        assert title not in self.by_title, title
        self.by_title[title] = Case(title, error, message, make)

    def files(self, title: str, error: type[AdapterError], message: str, **changed: object) -> None:
        """Add a sound LoRA with files changed: ``weights``, ``config``, ``manifest``, or any by its name."""
        self.add(title, error, message, lambda: Upload(lora_files(**changed)))

    def config(self, title: str, message: str, config: object, error: type[AdapterError] = InvalidAdapterError) -> None:
        """Add a sound LoRA with another config."""
        self.files(title, error, message, config=config)

    def tensors(
        self, title: str, message: str, error: type[AdapterError] = InvalidAdapterError, **changed: object
    ) -> None:
        """Add a sound LoRA with the tensors ``A`` or ``B`` of one layer replaced, or left out where None."""
        self.files(title, error, message, weights=lambda: safetensors_bytes(with_tensors(**changed)))

    def header(self, title: str, message: str, header: object, data: bytes = b"") -> None:
        """Add a sound config with any header and data as weights."""
        self.files(title, InvalidAdapterError, message, weights=lambda: with_header(header, data))


def tensors(rank: int = 4) -> dict[str, Array]:
    """The tensors of a sound LoRA on every layer of the base."""
    return lora_tensors(dict.fromkeys(PATHS, rank), FAKE_BASE)


def with_tensors(**changed: object) -> dict[str, Array]:
    """Those tensors with ``A`` and ``B`` of the first layer, or ones of any name, replaced or left out."""
    found = tensors()
    for key, array in changed.items():
        name = {"A": A, "B": B}.get(key, key)
        if array is None:
            del found[name]
        else:
            found[name] = np.asarray(array, np.float32)
    return found


def lora_files(weights: object = None, config: object = None, manifest: object = None, **more: object) -> Files:
    """A sound LoRA's files, some of them replaced; a function is called, and False leaves a file out."""
    given = {CONFIG: config or lora_config(), WEIGHTS: weights or safetensors_bytes(tensors())}
    given |= {MANIFEST: manifest} if manifest is not None else {}
    return {name: as_bytes(value) for name, value in (given | more).items() if value is not False}


def prompt_files(rows: Array, **config: object) -> Files:
    """A soft prompt's files for the base."""
    fields = prompt_config(**{"token_dim": FAKE_BASE.d_model, **config})
    return {CONFIG: as_bytes(fields), WEIGHTS: safetensors_bytes({"prompt_embeddings": rows})}


def as_bytes(value: object) -> bytes:
    """Return bytes as they are, text in UTF-8, the result of a function, and anything else as JSON."""
    if callable(value):
        value = value()
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
