"""What the registry tells: versions, adapters, references to them, and by whom a change is made.

Plain values; knows no database. Every function may be called from any thread.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.errors import (
    AdapterNotFoundError,
    AdapterNotReadyError,
    InvalidAdapterError,
    InvalidAdapterReferenceError,
)
from adapters.manifest import AdapterKind, check_name
from adapters.strict_json import show

DEFAULT_ALIAS = "stable"
MAX_NUM_TAGS = 32
MAX_TEXT_BYTES = 64 * 1024

_REFERENCE = re.compile(r"(?P<name>[^:@]{1,63})(?::(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[^:@]{1,63}))?")
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{0,128}")


class VersionState(StrEnum):
    """Where a version is in its life; only ``ready`` is served."""

    UPLOADING = "uploading"
    VALIDATING = "validating"
    READY = "ready"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """An adapter as a caller names it: at most one of version and alias."""

    name: str
    version: int | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an adapter.

    Attributes:
        name: Adapter name.
        version: Counts from 1.
        digest: Content address of its files; empty while they arrive and are checked.
        kind: Adapter family; None while its files arrive and are checked.
        state: Where it is in its life.
        reason: Why it is in that state, for people; may be empty.
        rank: Largest rank of a LoRA; 0 for soft prompts.
        num_virtual_tokens: Rows of a soft prompt; 0 for LoRA.
        size_bytes: Of all files.
        task: What it does.
        licence: SPDX identifier.
        description: One sentence for people.
        scores: Metric → value measured at training.
        prompt_template: Template that wraps the text; empty means the base's.
        created_s: Unix time its upload began.
        tags: Words to find it by, sorted.
        metrics: What its answers are scored by; empty means what its task has.
    """

    name: str
    version: int
    digest: str
    kind: AdapterKind | None
    state: VersionState
    reason: str = ""
    rank: int = 0
    num_virtual_tokens: int = 0
    size_bytes: int = 0
    task: str = ""
    licence: str = ""
    description: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    prompt_template: str = ""
    created_s: float = 0.0
    tags: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter: its versions, oldest first, and its aliases → version."""

    name: str
    versions: tuple[VersionRecord, ...]
    aliases: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """By whom a change is made.

    Attributes:
        who: Name for the audit log, as ``key:3f9a0c``.
        origin: Address it comes from; empty where there is none.
        idempotency_key: The caller's word for this change: the same word again within 24 hours gives the first answer.
            At most 128 printable ASCII characters; empty means none.
    """

    who: str
    origin: str = ""
    idempotency_key: str = ""


def parse_reference(reference: str) -> AdapterReference:
    """Read ``name``, ``name:3`` or ``name@alias``.

    Raises:
        InvalidAdapterReferenceError: If it is anything else.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InvalidAdapterReferenceError(f"{show(reference)} is no adapter; write name, name:version or name@alias")
    version, alias = match["version"], match["alias"]
    name = check_name(match["name"])
    return AdapterReference(name, int(version) if version else None, check_name(alias) if alias else None)


def no_adapter(name: str) -> AdapterNotFoundError:
    """Return the error for a name that does not exist."""
    return AdapterNotFoundError(f"there is no adapter {show(name)}")


def find_version(record: AdapterRecord, number: int) -> VersionRecord:
    """Return a version by its number.

    Raises:
        AdapterNotFoundError: If there is none.
    """
    for version in record.versions:
        if version.version == number:
            return version
    raise no_version(record.name, number)


def no_version(name: str, number: int) -> AdapterNotFoundError:
    """Return the error for a version that does not exist."""
    return AdapterNotFoundError(f"adapter {show(name)} has no version {number}")


def aliased_version(record: AdapterRecord, alias: str) -> int:
    """Return the number of the version an alias points at.

    Raises:
        AdapterNotFoundError: If there is no such alias.
    """
    if alias not in record.aliases:
        raise AdapterNotFoundError(f"adapter {show(record.name)} has no alias {show(alias)}")
    return record.aliases[alias]


def check_ready(version: VersionRecord) -> VersionRecord:
    """Return the version if it may be served.

    Raises:
        AdapterNotReadyError: If it is not ready.
    """
    if version.state is not VersionState.READY:
        because = f": {version.reason}" if version.reason else ""
        raise AdapterNotReadyError(f"{version.name}:{version.version} is {version.state}, not ready{because}")
    return version


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags sorted, each once.

    Raises:
        InvalidAdapterReferenceError: If one is not well formed (as a name), or there are more than 32.
    """
    known = sorted({check_name(tag) for tag in tags})
    if len(known) > MAX_NUM_TAGS:
        raise InvalidAdapterReferenceError(f"a version has at most {MAX_NUM_TAGS} tags, not {len(known)}")
    return tuple(known)


def check_key(key: str) -> str:
    """Return an idempotency key.

    Raises:
        InvalidAdapterReferenceError: If it is longer than 128 characters or has others than printable ASCII.
    """
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidAdapterReferenceError("an idempotency key is at most 128 printable ASCII characters")
    return key


def check_text(text: str, what: str) -> str:
    """Return a text that every database can keep.

    Args:
        text: From a stranger.
        what: Which text it is, for the message.

    Raises:
        InvalidAdapterError: If it has NUL or halves of surrogate pairs, or more than 64 KiB of UTF-8.
    """
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidAdapterError(f"the {what} holds characters that are not valid Unicode") from error
    if "\0" in text:
        raise InvalidAdapterError(f"the {what} holds a NUL character")
    if num_bytes > MAX_TEXT_BYTES:
        raise InvalidAdapterError(f"the {what} has {num_bytes} bytes; at most {MAX_TEXT_BYTES} are taken")
    return text
