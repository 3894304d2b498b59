"""The content address of a set of files."""

import hashlib
from pathlib import Path

import pytest

from adapters.digest import digest_bytes_of, digest_files, is_digest


def _files(folder: Path, **contents: bytes) -> dict[str, Path]:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_digest_files_of_known_bytes_is_the_documented_stream(tmp_path: Path) -> None:
    files = _files(tmp_path / "a", b=b"xy", a=b"")
    stream = b"".join(
        len(name).to_bytes(8, "little") + name + len(data).to_bytes(8, "little") + data
        for name, data in ((b"a", b""), (b"b", b"xy"))
    )
    assert digest_files(files) == hashlib.sha256(stream).hexdigest()


def test_digest_files_in_another_place_and_order_is_the_same(tmp_path: Path) -> None:
    one = _files(tmp_path / "one", a=b"1", b=b"2")
    two = _files(tmp_path / "two", b=b"2", a=b"1")
    assert digest_files(one) == digest_files(two)


@pytest.mark.parametrize(
    "other",
    [{"a": b"1", "b": b"3"}, {"a": b"1", "c": b"2"}, {"a": b"12", "b": b""}, {"a": b"1"}, {"ab": b"12"}],
    ids=["byte", "name", "border", "missing", "joined"],
)
def test_digest_files_with_any_difference_differs(tmp_path: Path, other: dict[str, bytes]) -> None:
    assert digest_files(_files(tmp_path / "one", a=b"1", b=b"2")) != digest_files(_files(tmp_path / "two", **other))


def test_digest_bytes_of_file_is_its_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    (tmp_path / "file").write_bytes(data)
    assert digest_bytes_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_is_digest_of_anything_else_is_false(text: str) -> None:
    assert is_digest("0123456789abcdef" * 4)
    assert not is_digest(text)
