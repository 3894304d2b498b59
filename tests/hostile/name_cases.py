"""Names, aliases, tags, file names and sources that climb out, hide or ask the server to fetch what it must not."""

from adapters.errors import (
    InvalidAdapterError,
    InvalidAdapterReferenceError,
    SourceNotAllowedError,
)
from server.core.errors import InvalidArgumentError
from server.engine.fake import FAKE_BASE
from tests.hostile.cases import Cases, Upload, lora_files

CASES = Cases()
NAME_RULE = "a name is 1 to 63"

_NAMES = {
    "slash": "a/b",
    "climbing": "../../etc/passwd",
    "dots": "..",
    "two-dots-inside": "a..b",
    "backslash": "a\\b",
    "percent-encoded-slash": "a%2fb",
    "percent-encoded-dots": "%2e%2e",
    "control": "a\x1bb",
    "null": "a\x00b",
    "newline-at-the-end": "ab\n",
    "upper-case": "News",
    "not-ascii": "n\u00e9ws",
    "look-alike": "n\u0435ws",
    "zero-width": "ne\u200bws",
    "turned-round": "a\u202eb",
    "space": "a b",
    "long": "a" * 64,
    "very-long": "a" * 4096,
    "version-sign": "a:3",
    "alias-sign": "a@stable",
    "joined": "a+b",
    "leading-dot": ".hidden",
    "leading-dash": "-rf",
}
_FILE_NAMES = {
    "climbing": "../adapter_config.json",
    "climbing-far": "../../../../../../tmp/medley-evil/adapter_config.json",
    "absolute": "/tmp/medley-evil/adapter_config.json",
    "in-a-folder": "sub/adapter_config.json",
    "backslash": "..\\adapter_config.json",
    "percent-encoded": "..%2fadapter_config.json",
    "control": "adapter_config.json\x1b",
    "not-ascii": "adapter_config.js\u043en",
    "upper-case": "ADAPTER_CONFIG.JSON",
    "very-long": "a" * 1000 + ".json",
    "dots": "..",
}
_SOURCES = {
    "file:///etc": "does not fetch from",
    "file:///etc/../etc": "not well formed",
    "/etc/passwd": "is no source",
    "s3://bucket/folder": "does not fetch from",
    "http://169.254.169.254/latest/meta-data": "is no source",
    "https://example.org/adapter": "is no source",
    "ftp://example.org/adapter": "is no source",
    "memory://adapter": "is no source",
    "simplecache::file:///etc": "is no source",
    "zip://*::file:///etc/x.zip": "is no source",
    "HF://owner/repo": "is no source",
    "hf://../../etc/passwd": "not well formed",
    "hf://owner/../secret": "not well formed",
    "hf://owner/repo/%2e%2e/%2e%2e/x": "not well formed",
    "hf://user:password@owner/repo": "not well formed",
    "hf://owner/repo\n": "not well formed",
    "hf://owner/repo@../../main": "no revision",
    "hf://datasets/owner/repo": "no model repository",
    "hf://": "not well formed",
    "hf://" + "a" * 9999 + "/repo": "is no source",
}


def _named(name: str) -> Upload:
    return Upload(lora_files(), name=name)


def _names() -> None:
    for title, name in _NAMES.items():
        CASES.add(f"name-{title}", InvalidAdapterReferenceError, NAME_RULE, lambda name=name: _named(name))
    CASES.add("name-of-the-base", InvalidArgumentError, "base", lambda: _named(FAKE_BASE.model_id))
    for title in ("slash", "dots", "control", "long", "not-ascii"):
        CASES.add(
            f"alias-{title}",
            InvalidAdapterReferenceError,
            NAME_RULE,
            lambda alias=_NAMES[title]: Upload(lora_files(), alias=alias),
        )
        CASES.add(
            f"tag-{title}",
            InvalidAdapterReferenceError,
            NAME_RULE,
            lambda tag=_NAMES[title]: Upload(lora_files(), tags=(tag,)),
        )
    tags = tuple(f"t{number}" for number in range(33))
    CASES.add("tags-too-many", InvalidAdapterReferenceError, "32", lambda: Upload(lora_files(), tags=tags))


def _file_names() -> None:
    for title, name in _FILE_NAMES.items():
        CASES.files(f"file-name-{title}", InvalidAdapterError, "unexpected file", **{name: b"{}"})
    many = {f"file{number}.json": b"{}" for number in range(100)}
    CASES.files("file-names-without-end", InvalidAdapterError, "unexpected file", **many)


def _sources() -> None:
    for number, (source, message) in enumerate(_SOURCES.items()):
        scheme = source.partition(":")[0].strip("/").replace("/", "-").lower()
        title = f"source-{number}-{scheme}"
        CASES.add(title, SourceNotAllowedError, message, lambda source=source: Upload(source=source))


_names()
_file_names()
_sources()
