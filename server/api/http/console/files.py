"""The page's files, read once into a fixed table: what is not in it cannot be asked for.

Knows no protocol. Functions may be called from any thread.
"""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_HERE = Path(__file__).parent
_PAGE = _HERE / "page"
_VENDOR = _HERE / "vendor"
_INDEX = "index.html"
_KEYS_PLACE = b'data-keys="unknown"'
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file.

    Attributes:
        data: Its bytes.
        gzipped: The same, compressed.
        content_type: What it is.
        etag: Changes with its bytes; weak, as it stands for both forms.
    """

    data: bytes
    gzipped: bytes
    content_type: str
    etag: str


@dataclass(frozen=True, slots=True)
class ConsoleFiles:
    """All of them.

    Attributes:
        assets: By path below the page's own address.
        page: The page of a server that answers everybody.
        page_with_keys: The page of a server that asks for a key.
    """

    assets: Mapping[str, Asset]
    page: Asset
    page_with_keys: Asset


def read_console() -> ConsoleFiles:
    """Read every file of the page.

    Raises:
        OSError: If one cannot be read, as when they were not installed with the package.
    """
    index = (_PAGE / _INDEX).read_bytes()
    # The page must know before its first call: a browser reports every refused one as an error.
    assert index.count(_KEYS_PLACE) == 1
    html = _CONTENT_TYPES[".html"]
    return ConsoleFiles(
        assets=MappingProxyType(dict(_assets())),
        page=_asset(index.replace(_KEYS_PLACE, b'data-keys="none"'), html),
        page_with_keys=_asset(index.replace(_KEYS_PLACE, b'data-keys="required"'), html),
    )


def _assets() -> Iterator[tuple[str, Asset]]:
    own = ((path.relative_to(_PAGE).as_posix(), path) for path in _PAGE.rglob("*") if path.name != _INDEX)
    vendored = ((path.relative_to(_HERE).as_posix(), path) for path in _VENDOR.glob("*"))
    for name, path in sorted([*own, *vendored]):
        if path.is_file() and path.suffix in _CONTENT_TYPES:
            yield name, _asset(path.read_bytes(), _CONTENT_TYPES[path.suffix])


def _asset(data: bytes, content_type: str) -> Asset:
    etag = f'W/"{hashlib.sha256(data).hexdigest()[:32]}"'
    return Asset(data, gzip.compress(data, mtime=0), content_type, etag)
