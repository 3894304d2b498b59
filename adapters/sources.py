"""Adapters fetched from where the operator allows: ``hf://``, ``s3://`` and ``file://`` folders.

A source is one of ``hf://owner/repo[@revision][/folder]``, ``s3://bucket/folder``, ``file:///folder``. It is taken
apart and put together again before it is compared with the allow-list, and what could be written in another way too is
refused: ``..``, ``//``, ``%``, user names, queries. Of the folder only an adapter's own files are taken, by their exact
names and under their size limits, whatever the other side says about them. Links are followed as long as they stay
within the allowed folder, as those of the hub's cache do.

Pull requests of a hub repository (``@refs/…``) are refused: anybody can open one under the owner's name.

Knows no formats (``adapters.codec`` does) and no names. Functions may be called from any thread; they wait for disk and
network, so never from an event loop.
"""

import io
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback
from typing_extensions import Buffer

from adapters.adapter_folder import ALLOWED_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import AdapterError, AdapterTooLargeError, SourceError, SourceNotAllowedError
from adapters.object_stores import connect
from adapters.staging_folder import emptied_on_error
from adapters.strict_json import show

SCHEMES = ("hf", "s3", "file")

_FETCH_TIMEOUT_S = 600.0
_MAX_SOURCE_CHARS = 1024
_SEGMENT = re.compile(r"[\w.+=~, -]+", re.ASCII)
_REVISION = re.compile(r"[\w.+=-]+", re.ASCII)
_HUB_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")  # the hub's own first words: no owner is called so
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Source:
    """A source, taken apart.

    Attributes:
        scheme: One of ``SCHEMES``.
        segments: Owner, repository, folders; bucket, folders; or folders from the root.
        revision: Of a hub repository; empty: its main branch.
    """

    scheme: str
    segments: tuple[str, ...]
    revision: str = ""

    @property
    def url(self) -> str:
        """The one way to write it, without the revision; ends with a slash."""
        root = "file:///" if self.scheme == "file" else f"{self.scheme}://"
        return root + "".join(f"{segment}/" for segment in self.segments)

    @property
    def remote_path(self) -> str:
        """As fsspec wants it."""
        if self.scheme != "hf" or not self.revision:
            return "/".join(self.segments)
        owner, repository, *folders = self.segments
        return "/".join((owner, f"{repository}@{self.revision}", *folders))


@dataclass(frozen=True, slots=True)
class _Limits:
    """What one fetch may take.

    Attributes:
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.
        until_s: Monotonic time at which it is given up.
    """

    max_file_bytes: int
    max_text_bytes: int
    until_s: float

    def check(self, name: str, num_bytes: int) -> None:
        """Raise if a file of that name is larger than allowed, or the time is up."""
        limit = self.max_file_bytes if name == WEIGHTS_FILE else self.max_text_bytes
        if num_bytes > limit:
            raise AdapterTooLargeError(f"{name} at the source has {num_bytes} bytes or more; at most {limit} are taken")
        if time.monotonic() > self.until_s:
            raise SourceError("the source took too long; try again, or upload the files")


def fetch_source(
    source: str,
    into: Path,
    *,
    allowed: tuple[str, ...],
    max_file_bytes: int,
    max_text_bytes: int,
    options: Mapping[str, Mapping[str, object]] | None = None,
    timeout_s: float = _FETCH_TIMEOUT_S,
) -> None:
    """Fetch an adapter's files into an empty folder; on any error the folder is empty again.

    Args:
        source: Where from; see the module's text.
        into: Where to; must be there.
        allowed: Prefixes of the sources that are allowed, ``hf://`` or ``s3://bucket/adapters/`` for instance; each
            means whole folders: ``hf://owner`` allows nothing of ``hf://owner2``.
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.
        options: Scheme → what fsspec needs to get there: end point, keys, token.
        timeout_s: When to give up.

    Raises:
        SourceNotAllowedError: If it is not well formed or no prefix matches.
        AdapterTooLargeError: If a file is over its limit.
        SourceError: If it is not there, holds no adapter, cannot be read, or ``into`` not written.
    """
    parsed = _parse(source)
    prefix = _allowing(parsed, allowed)
    limits = _Limits(max_file_bytes, max_text_bytes, time.monotonic() + timeout_s)
    with emptied_on_error(into):
        if parsed.scheme == "file":
            _copy_folder(parsed, Path("/", prefix.removeprefix("file://")), into, limits)
        else:
            _download(parsed, into, limits, (options or {}).get(parsed.scheme, {}))


def _parse(source: str) -> _Source:
    scheme, separator, rest = source.partition("://")
    if not separator or scheme not in SCHEMES or len(source) > _MAX_SOURCE_CHARS:
        raise SourceNotAllowedError(f"{show(source)} is no source; sources begin with hf://, s3:// or file:///")
    if scheme == "file":
        host, slash, rest = rest.partition("/")
        if host or not slash:
            raise _not_well_formed(source)
    segments = rest.removesuffix("/").split("/")
    revision = ""
    if scheme == "hf" and len(segments) >= 2 and "@" in segments[1]:
        segments[1], _, revision = segments[1].partition("@")
        if not _is_plain(_REVISION, revision) or revision == "refs":
            raise SourceNotAllowedError(
                f"{show(revision)} is no revision that is taken; name a branch, a tag or a commit without slashes"
            )
    if not all(_is_plain(_SEGMENT, segment) for segment in segments):
        raise _not_well_formed(source)
    if scheme == "hf" and (len(segments) < 2 or segments[0] in _HUB_KINDS):
        raise SourceNotAllowedError(f"{show(source)} is no model repository; write hf://owner/repo[@revision][/folder]")
    return _Source(scheme, tuple(segments), revision)


def _is_plain(alphabet: re.Pattern[str], text: str) -> bool:
    return alphabet.fullmatch(text) is not None and text not in (".", "..") and text.strip() == text


def _not_well_formed(source: str) -> SourceNotAllowedError:
    return SourceNotAllowedError(
        f"{show(source)} is not well formed; plain names between single slashes, no '..', '%', '@'"
    )


def _allowing(source: _Source, allowed: tuple[str, ...]) -> str:
    for prefix in allowed:
        if source.url.startswith(prefix if prefix.endswith("/") else f"{prefix}/"):
            return prefix
    raise SourceNotAllowedError(f"this server does not fetch from {show(source.url)}; upload the files instead")


def _copy_folder(source: _Source, root: Path, into: Path, limits: _Limits) -> None:
    with _as_source_error():
        root = root.resolve(strict=True)
        folder = Path("/", *source.segments)
        found = {name: folder / name for name in ALLOWED_FILES if (folder / name).exists()}
        _check_names(found.keys())
        for name, path in found.items():
            with _open_inside(path, root) as reader, _BoundedFile(into / name, limits) as writer:
                limits.check(name, os.fstat(reader.fileno()).st_size)
                shutil.copyfileobj(reader, writer, _CHUNK_BYTES)


@contextmanager
def _open_inside(path: Path, root: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file whose links lead nowhere out of ``root``, even when they are changed meanwhile."""
    actual = path.resolve(strict=True)
    if not actual.is_relative_to(root):
        raise SourceNotAllowedError(f"{path.name} is a link that leads out of the allowed folder")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, name = actual.relative_to(root).parts
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        # Without O_NONBLOCK a named pipe would make us wait for its writer.
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise SourceError(f"{path.name} at the source is no regular file")
        yield file


def _download(source: _Source, into: Path, limits: _Limits, options: Mapping[str, object]) -> None:
    with _as_source_error():
        filesystem, folder = connect(f"{source.scheme}://{source.remote_path}", options)
        sizes = _list(filesystem, folder)
        _check_names(sizes.keys())
        for name, size_bytes in sizes.items():
            limits.check(name, size_bytes)
        for name, size_bytes in sizes.items():
            get = _get_from_s3 if source.scheme == "s3" else _get_from_hub
            get(filesystem, f"{folder}/{name}", into / name, limits)
            if (into / name).stat().st_size != size_bytes:
                raise SourceError(f"{name} broke off on its way; try again")


def _list(filesystem: AbstractFileSystem, folder: str) -> dict[str, int]:
    """Name → bytes of the adapter's files in a folder; what else is there is nobody's business."""
    found = {str(entry["name"]).rpartition("/")[2]: entry for entry in filesystem.ls(folder, detail=True)}
    return {
        name: int(entry["size"]) for name, entry in found.items() if name in ALLOWED_FILES and entry["type"] == "file"
    }


def _get_from_hub(filesystem: AbstractFileSystem, path: str, target: Path, limits: _Limits) -> None:
    with _BoundedFile(target, limits) as writer:
        filesystem.get_file(path, outfile=writer)


def _get_from_s3(filesystem: AbstractFileSystem, path: str, target: Path, limits: _Limits) -> None:
    # One stream: parts fetched at once would each be held in memory, and not be counted as they come.
    filesystem.get_file(path, str(target), callback=_Bounded(target.name, limits), max_concurrency=1)


class _BoundedFile(io.FileIO):
    """A new file that refuses to grow over the limit of its name."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        super().__init__(path, "xb")
        self._file_name = path.name
        self._limits = limits

    def write(self, data: Buffer, /) -> int:
        self._limits.check(self._file_name, self.tell() + memoryview(data).nbytes)
        return super().write(data)


class _Bounded(Callback):  # type: ignore[misc]
    """Told by fsspec how much it has written; refuses more than the limit."""

    def __init__(self, name: str, limits: _Limits) -> None:
        super().__init__()
        self._name = name
        self._limits = limits

    def set_size(self, size: int | None) -> None:
        self._limits.check(self._name, size or 0)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._limits.check(self._name, self.value)


def _check_names(names: Set[str]) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise SourceError(
                f"the source has no {name}; name the folder that PEFT's save_pretrained wrote, saved as safetensors"
            )


@contextmanager
def _as_source_error() -> Iterator[None]:
    """Turn whatever goes wrong into our error, without its text: that may hold addresses and keys."""
    try:
        yield
    except AdapterError:
        raise
    except FileNotFoundError as error:
        raise SourceError("nothing is at the source; check its name, or whether this server may see it") from error
    except PermissionError as error:
        raise SourceError("this server may not read the source; its operator can give it access") from error
    except Exception as error:  # drivers raise the errors of their own HTTP libraries, which have no common base
        raise SourceError(
            f"the source cannot be read ({type(error).__name__}); try again, or upload the files"
        ) from error
