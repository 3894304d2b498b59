"""Archives that climb out, link, explode or hide one file behind another."""

import gzip
import io
import lzma
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence

from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.hostile.cases import LIMITS, Cases, Upload, lora_files

CASES = Cases()
_ENCRYPTED = 0x1
_LINK_MODE = 0o120777 << 16


def tar_of(files: Mapping[str, bytes], mode: str = "w", extra: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A tar with these members, and members without bytes behind them."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return target.getvalue()


def zip_of(members: Sequence[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with these members, twice the same name if asked to."""
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _sound() -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return list(lora_files().items())


def _patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Bytes with a field behind the first such signature overwritten."""
    at = data.index(signature) + offset
    return data[:at] + value + data[at + len(value) :]


def _linked_zip() -> bytes:
    link = zipfile.ZipInfo("card.md")
    link.create_system, link.external_attr = 3, _LINK_MODE
    return zip_of([*_sound(), (link, b"/etc/passwd")])


def _encrypted_zip() -> bytes:
    data = zip_of(_sound())
    flags = struct.pack("<H", _ENCRYPTED)
    return _patched(_patched(data, b"PK\x03\x04", 6, flags), b"PK\x01\x02", 8, flags)


def _zip_that_says_less() -> bytes:
    """A zip whose table of contents says ten bytes where a megabyte and more will come."""
    data = zip_of([(WEIGHTS, b"\0" * (4 << 20)), (CONFIG, lora_files()[CONFIG])])
    ten = struct.pack("<I", 10)
    return _patched(_patched(data, b"PK\x03\x04", 22, ten), b"PK\x01\x02", 24, ten)


def _wrong_checksum() -> bytes:
    data = zip_of(_sound(), zipfile.ZIP_STORED)
    return _patched(_patched(data, b"PK\x03\x04", 14, b"\1\2\3\4"), b"PK\x01\x02", 16, b"\1\2\3\4")


def _add(
    title: str,
    error: type[InvalidAdapterError | AdapterTooLargeError],
    message: str,
    make: Callable[[], bytes],
    suffix: str,
) -> None:
    CASES.add(title, error, message, lambda: Upload(archive=make(), archive_suffix=suffix))


def _tar(
    title: str,
    message: str,
    make: Callable[[], bytes],
    error: type[InvalidAdapterError | AdapterTooLargeError] = InvalidAdapterError,
) -> None:
    _add(f"tar-{title}", error, message, make, ".tar")


def _zip(
    title: str,
    message: str,
    make: Callable[[], bytes],
    error: type[InvalidAdapterError | AdapterTooLargeError] = InvalidAdapterError,
) -> None:
    _add(f"zip-{title}", error, message, make, ".zip")


def _paths() -> None:
    names = {
        "climbs-out": "../adapter_config.json",
        "climbs-far": "../../../../../../tmp/medley-evil/card.md",
        "is-absolute": "/tmp/medley-evil/card.md",
        "climbs-within": "a/../card.md",
        "nests-too-deep": "a/b/card.md",
        "with-a-backslash": "..\\card.md",
        "with-a-control-character": "card.md\x1b[2J",
        "with-a-null-folder": "./../card.md",
    }
    for title, name in names.items():
        message = "too deep" if title == "nests-too-deep" else "plain names in one folder only"
        _tar(title, message, lambda name=name: tar_of({**lora_files(), name: b"x"}))
        _zip(title, message, lambda name=name: zip_of([*_sound(), (name, b"x")]))
    _tar("with-a-script", "unexpected file", lambda: tar_of({**lora_files(), "run.sh": b"x"}))
    _zip("with-a-script", "unexpected file", lambda: zip_of([*_sound(), ("run.sh", b"x")]))
    _zip("with-a-pickle", "can run code", lambda: zip_of([*_sound(), ("a.bin", b"x")]), UnsupportedAdapterError)
    _tar("with-a-pickle", "can run code", lambda: tar_of({**lora_files(), "a.pt": b"x"}), UnsupportedAdapterError)
    _zip("with-an-archive-inside", "unexpected file", lambda: zip_of([("inner.zip", zip_of(_sound()))]))
    _tar("with-an-archive-inside", "unexpected file", lambda: tar_of({"inner.tar": tar_of(lora_files())}))
    two = {f"{folder}/{name}": data for folder in "ab" for name, data in lora_files().items()}
    _tar("of-two-adapters", "twice", lambda: tar_of(two))
    _zip("of-two-adapters", "twice", lambda: zip_of(list(two.items())))


def _kinds() -> None:
    kinds = {
        "symbolic-link": ("a link", tarfile.SYMTYPE, "/etc/passwd"),
        "symbolic-link-inside": ("a link", tarfile.SYMTYPE, "adapter_config.json"),
        "hard-link": ("a link", tarfile.LNKTYPE, "adapter_config.json"),
        "hard-link-out": ("a link", tarfile.LNKTYPE, "/etc/passwd"),
        "device": ("a device", tarfile.CHRTYPE, ""),
        "block-device": ("a device", tarfile.BLKTYPE, ""),
        "pipe": ("a named pipe", tarfile.FIFOTYPE, ""),
    }
    for title, (message, kind, target) in kinds.items():
        special = _special("card.md", kind, target)
        _tar(title, message, lambda special=special: tar_of(lora_files(), extra=[special]))
    _zip("symbolic-link", "link or device", _linked_zip)
    _zip("encrypted", "encrypted", _encrypted_zip)
    _zip("of-a-file-twice", "twice", lambda: zip_of([*_sound(), *_sound()]))
    _tar("of-a-file-twice", "twice", lambda: tar_of(lora_files(), extra=[tarfile.TarInfo(CONFIG)]))


def _bombs() -> None:
    over = LIMITS.max_file_bytes + 1
    zeros = b"\0" * (16 << 20)
    large = AdapterTooLargeError
    _zip("bomb", "has 16777216 bytes", lambda: zip_of([(WEIGHTS, zeros), (CONFIG, b"{}")]), large)
    _zip("bomb-of-text", "card.md has 16777216 bytes", lambda: zip_of([*_sound(), ("card.md", zeros)]), large)
    _zip("that-says-less-than-comes", "size or checksum", _zip_that_says_less)
    _zip("bomb-in-bzip2", "unusual way", lambda: zip_of([(WEIGHTS, zeros), (CONFIG, b"{}")], zipfile.ZIP_BZIP2))
    _tar("over-the-limit", "bytes; at most", lambda: tar_of({WEIGHTS: b"\0" * over, CONFIG: b"{}"}), large)
    _add("tar-gz-bomb", large, "has 16777216 bytes", lambda: tar_of({WEIGHTS: zeros, CONFIG: b"{}"}, "w:gz"), ".tar.gz")
    _add("gzip-bomb-that-is-no-tar", InvalidAdapterError, "after its end", lambda: gzip.compress(zeros), ".tar.gz")
    _add("gzip-of-gzip", InvalidAdapterError, "damaged header", lambda: gzip.compress(gzip.compress(zeros)), ".tar.gz")
    _add("tar-xz", InvalidAdapterError, "no tar, tar.gz or zip", lambda: lzma.compress(tar_of(lora_files())), ".tar.gz")
    _tar("of-ten-thousand-files", "unexpected file", lambda: tar_of({f"{number}": b"" for number in range(10_000)}))
    _tar(
        "of-ten-thousand-folders",
        "too many entries",
        lambda: tar_of(lora_files(), extra=[_special(f"d{n}", tarfile.DIRTYPE) for n in range(10_000)]),
        large,
    )
    names = [str(number) for number in range(10_000)]
    _zip("of-ten-thousand-files", "too many entries", lambda: zip_of([(name, b"") for name in names]), large)


def _broken() -> None:
    _zip("cut-off", "cut off", lambda: zip_of(_sound())[:-30])
    _zip("with-a-wrong-checksum", "checksum", _wrong_checksum)
    _tar("cut-off", "cut off", lambda: tar_of(lora_files())[:1500])
    _add("tar-gz-cut-off", InvalidAdapterError, "cut off", lambda: tar_of(lora_files(), "w:gz")[:-20], ".tar.gz")
    _zip("of-nothing", "missing", lambda: zip_of([]))
    _tar("of-nothing", "no tar", lambda: tar_of({}))
    _add("archive-of-text", InvalidAdapterError, "no tar", lambda: b"hello " * 99, ".zip")
    _add("archive-of-zeros", InvalidAdapterError, "no tar", lambda: b"\0" * 4096, ".tar")
    _add("archive-that-is-a-pickle", InvalidAdapterError, "no tar", lambda: b"\x80\x04\x95" + b"a" * 999, ".tar")
    _zip("without-weights", "missing", lambda: zip_of([(CONFIG, lora_files()[CONFIG])]))


_paths()
_kinds()
_bombs()
_broken()
