"""Archives of any kind: what is taken, where it goes, and that nothing stays after a refusal."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.archive import unpack_archive
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.fixtures.archives import FILES, KINDS, packed

Unpack = Callable[[bytes], dict[str, bytes]]
Refuse = Callable[..., str]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    def run(data: bytes) -> dict[str, bytes]:
        (tmp_path / "archive").write_bytes(data)
        (tmp_path / "into").mkdir()
        unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 20, max_text_bytes=1000)
        return {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()}

    return run


@pytest.fixture
def refused(unpack: Unpack, tmp_path: Path) -> Refuse:
    def run(data: bytes, error: type[Exception] = InvalidAdapterError) -> str:
        with pytest.raises(error) as caught:
            unpack(data)
        assert type(caught.value) is error
        assert list((tmp_path / "into").iterdir()) == []
        assert {path.name for path in tmp_path.iterdir()} == {"archive", "into"}
        return str(caught.value)

    return run


def test_unpack_of_files_at_the_top_gives_them(kind: str, unpack: Unpack) -> None:
    assert unpack(packed(kind)) == FILES


@pytest.mark.parametrize("folder", ["./", "news/", "./news/"])
def test_unpack_of_files_in_one_folder_gives_them_flat(kind: str, folder: str, unpack: Unpack) -> None:
    assert unpack(packed(kind, folder=folder)) == FILES


def test_unpack_of_pefts_named_adapter_takes_the_readme_beside_it(kind: str, unpack: Unpack) -> None:
    files = {"README.md": b"beside", **{f"news/{name}": data for name, data in FILES.items()}}
    assert unpack(packed(kind, files)) == {"README.md": b"beside", **FILES}


def test_unpack_passes_over_what_a_mac_adds(kind: str, unpack: Unpack) -> None:
    added = {"__MACOSX/._news": b"x", "__MACOSX/news/._a": b"x", "._card.md": b"x", "news/.DS_Store": b"x"}
    assert unpack(packed(kind, {**added, **{f"news/{name}": data for name, data in FILES.items()}})) == FILES


@pytest.mark.parametrize(
    "path",
    [
        "../card.md",
        "news/../../card.md",
        "/etc/card.md",
        "//card.md",
        "C:card.md",
        "C:/card.md",
        "news\\card.md",
        "..\\card.md",
        "news//card.md",
        "news/./card.md",
        "././card.md",
        "..",
        "__MACOSX/../../card.md",
        "new\ns/card.md",
        "\x7f/card.md",
        "a" * 600 + "/card.md",
    ],
)
def test_unpack_of_paths_that_lead_elsewhere_is_refused(kind: str, path: str, refused: Refuse) -> None:
    assert "holds the path" in refused(packed(kind, {**FILES, path: b"x"}))


def test_unpack_of_names_beyond_ascii_is_refused(kind: str, refused: Refuse) -> None:
    assert "ASCII" in refused(packed(kind, {**FILES, "ñews/card.md": b"x"}))


@pytest.mark.parametrize("name", ["train.py", "inner.zip", "inner.tar.gz", "Card.md", "card.md ", ".hidden", "news"])
def test_unpack_of_unknown_files_is_refused(kind: str, name: str, refused: Refuse) -> None:
    assert "unexpected file" in refused(packed(kind, {**FILES, name: b"x"}))


@pytest.mark.parametrize("name", ["adapter_model.bin", "news/data.pkl", "x.PT"])
def test_unpack_of_pickles_is_refused(kind: str, name: str, refused: Refuse) -> None:
    assert "run code" in refused(packed(kind, {**FILES, name: b"x"}), UnsupportedAdapterError)


def test_unpack_of_a_file_twice_is_refused(kind: str, refused: Refuse) -> None:
    assert "twice" in refused(packed(kind, {**FILES, "news/card.md": b"x"}))


@pytest.mark.parametrize(
    "files",
    [
        {CONFIG: b"", "news/" + WEIGHTS: b""},
        {"a/" + CONFIG: b"", "b/" + WEIGHTS: b""},
        {CONFIG: b"", WEIGHTS: b"", "news/card.md": b""},
        {"a/" + CONFIG: b"", "a/" + WEIGHTS: b"", "b/card.md": b""},
    ],
)
def test_unpack_of_several_folders_of_files_is_refused(kind: str, files: dict[str, bytes], refused: Refuse) -> None:
    assert "more than one folder" in refused(packed(kind, files))


@pytest.mark.parametrize("path", ["a/b/card.md", "a/b/c/card.md"])
def test_unpack_of_deeper_folders_is_refused(kind: str, path: str, refused: Refuse) -> None:
    assert "too deep" in refused(packed(kind, {path: b"x"}))


@pytest.mark.parametrize(("name", "size_bytes"), [(WEIGHTS, (1 << 20) + 1), ("card.md", 1001), ("._x", 1001)])
def test_unpack_of_too_large_files_is_refused(kind: str, name: str, size_bytes: int, refused: Refuse) -> None:
    assert "at most" in refused(packed(kind, {**FILES, name: bytes(size_bytes)}), AdapterTooLargeError)


def test_unpack_of_thousands_of_entries_is_refused(kind: str, refused: Refuse) -> None:
    files = {f"._{number}": b"" for number in range(3000)}
    assert "too many entries" in refused(packed(kind, {**FILES, **files}), AdapterTooLargeError)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_unpack_of_a_bomb_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(packed(kind, {**FILES, WEIGHTS: bytes(40 << 20)}))
    (tmp_path / "into").mkdir()
    with pytest.raises(AdapterTooLargeError, match="hundred times"):
        unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 30, max_text_bytes=1000)
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 10240, b"{}", b"Rar!\x1a\x07\x01\x00", b"7z\xbc\xaf\x27\x1c", b"BZh91AY&SY", b"\xfd7zXZ\x00"],
)
def test_unpack_of_something_else_is_refused(data: bytes, refused: Refuse) -> None:
    assert "no tar, tar.gz or zip" in refused(data)


def test_unpack_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    data = packed(kind)
    (tmp_path / "into").mkdir()
    # Beyond its two blocks of zeros a tar archive is padded; those may be missing.
    last = len(data) if kind != "tar" else len(data.rstrip(b"\x00")) // 512 * 512 + 512
    for length in [*range(0, last, 97), last - 1]:
        (tmp_path / "archive").write_bytes(data[:length])
        with pytest.raises(InvalidAdapterError):
            unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 20, max_text_bytes=1000)
        assert list((tmp_path / "into").iterdir()) == []


def test_unpack_follows_no_link_to_the_archive(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(packed("tar"))
    (tmp_path / "archive").symlink_to(tmp_path / "real")
    (tmp_path / "into").mkdir()
    with pytest.raises(OSError, match="symbolic links"):
        unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 20, max_text_bytes=1000)
