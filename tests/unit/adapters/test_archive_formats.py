"""Tricks of the archive formats: headers that lie, entries that are no files, bytes used twice."""

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.archive import unpack_archive
from adapters.errors import AdapterError, AdapterTooLargeError, InvalidAdapterError
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.fixtures.archives import FILES, KINDS, packed, tar_entry, tarred, zip_entry, zipped

Unpack = Callable[[bytes], dict[str, bytes]]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    def run(data: bytes) -> dict[str, bytes]:
        (tmp_path / "archive").write_bytes(data)
        (tmp_path / "into").mkdir(exist_ok=True)
        try:
            unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 20, max_text_bytes=1000)
            return {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()}
        except BaseException:
            assert list((tmp_path / "into").iterdir()) == []
            raise

    return run


SOUND = list(FILES.items())


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_unpack_of_a_folder_packed_by_pythons_tarfile_gives_its_files(
    tar_format: int, unpack: Unpack, tmp_path: Path
) -> None:
    folder = tmp_path / ("a" * 90 + "b" * 60 if tar_format != tarfile.USTAR_FORMAT else "news")
    folder.mkdir()
    for name, data in SOUND:
        (folder / name).write_bytes(data)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tar_format) as archive:
        archive.add(folder, folder.name)
    assert unpack(buffer.getvalue()) == FILES


def test_unpack_of_a_zip_with_folders_stored_files_and_streamed_sizes_gives_its_files(unpack: Unpack) -> None:
    class Pipe(io.RawIOBase):
        """Cannot seek, so that the packer writes sizes after the bytes."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(memoryview(data))  # type: ignore[call-overload]
            return len(bytes(memoryview(data)))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.mkdir("news")
        for name, data in SOUND:
            archive.writestr(f"news/{name}", data)
        archive.comment = b"PK\x05\x06 is what the end begins with"
    assert unpack(pipe.data) == FILES


def test_unpack_of_a_zip_prepared_for_zip64_gives_its_files(unpack: Unpack) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in SOUND:
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    assert unpack(buffer.getvalue()) == FILES


def test_unpack_of_joined_gzip_files_gives_their_files(unpack: Unpack) -> None:
    data = packed("tar")
    assert unpack(gzip.compress(data[:700]) + gzip.compress(data[700:])) == FILES


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (tarfile.CONTTYPE, "unknown kind"),
        (b"Z", "unknown kind"),
    ],
)
def test_unpack_of_a_tar_entry_that_is_no_file_is_refused(kind: bytes, message: str, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match=message):
        unpack(tarred([*SOUND, tar_entry("README.md", kind, "/etc/passwd")]))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1"},
        {"GNU.sparse.map": "0,1"},
        {"SCHILY.realsize": "5"},
        {"linkpath": "/etc/passwd"},
        {"size": "100"},
        {"size": "-1"},
        {"path": "../../README.md"},
        {"path": "/README.md"},
        {"path": "ñ"},
    ],
)
def test_unpack_of_a_pax_header_that_does_more_than_name_files_is_refused(
    headers: dict[str, str], unpack: Unpack
) -> None:
    with pytest.raises(InvalidAdapterError):
        unpack(tarred([*SOUND, tar_entry("README.md", tarfile.REGTYPE, **headers)]))


def test_unpack_of_a_pax_header_that_names_an_adapters_file_gives_it(unpack: Unpack) -> None:
    data = tarred([*SOUND, tar_entry("anything", tarfile.REGTYPE, path="README.md", comment="x")])
    assert unpack(data) == {**FILES, "README.md": b""}


def _tar_header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_unpack_of_a_huge_extended_header_is_refused_unread(kind: bytes, unpack: Unpack) -> None:
    with pytest.raises(AdapterTooLargeError, match="header of 8589934591 bytes"):
        unpack(_tar_header(b"x", b"77777777777", kind))


@pytest.mark.parametrize("kind", [b"x", b"g"])
@pytest.mark.parametrize(
    "records", [b"", b"x", b"5 a=b", b"0 a=b\n", b"99 a=b\n", b"6 a=b\n6 a=b\n", b"6 abc\n", b"-6 a=b\n", b"9" * 100]
)
def test_unpack_of_malformed_pax_records_is_refused_or_nothing(kind: bytes, records: bytes, unpack: Unpack) -> None:
    padded = records.ljust(-(-len(records) // 512) * 512, b"\x00")
    data = _tar_header(b"x", b"%011o" % len(records), kind) + padded + tarred(SOUND)
    if records:
        with pytest.raises(InvalidAdapterError):
            unpack(data)
    else:
        assert unpack(data) == FILES


def test_unpack_of_a_tar_with_pax_paths_for_all_entries_is_refused(unpack: Unpack) -> None:
    records = b"18 path=README.md\n"
    data = _tar_header(b"x", b"%011o" % len(records), b"g") + records.ljust(512, b"\x00") + tarred(SOUND)
    with pytest.raises(InvalidAdapterError, match="more than name files"):
        unpack(data)


@pytest.mark.parametrize("size", [b"\x80" + bytes(11), b"\xff" * 12, b"-0000000001", b"0x10", b"9", b""])
def test_unpack_of_a_tar_size_that_is_no_octal_number_is_refused(size: bytes, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="malformed header"):
        unpack(_tar_header(b"README.md", size, b"0") + bytes(1024))


def test_unpack_of_a_tar_folder_with_bytes_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="bytes of its own"):
        unpack(_tar_header(b"news/", b"1000", b"5") + bytes(2048))


def test_unpack_of_a_tar_size_beyond_its_end_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="cut off"):
        unpack(_tar_header(WEIGHTS.encode(), b"%011o" % 9000, b"0") + bytes(4096))


@pytest.mark.parametrize("more", [b"x", bytes(2 << 20), tarred([("../x", b"")])], ids=["text", "zeros", "tar"])
def test_unpack_of_a_tar_that_goes_on_after_its_end_is_refused(more: bytes, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="after its end"):
        unpack(gzip.compress(tarred(SOUND) + more))


@pytest.mark.parametrize("at", [-1, -5, 40])
def test_unpack_of_gzip_with_a_wrong_sum_size_or_byte_is_refused(at: int, unpack: Unpack) -> None:
    data = bytearray(packed("tar.gz"))
    data[at] ^= 1
    with pytest.raises(InvalidAdapterError):
        unpack(bytes(data))


def test_unpack_of_gzip_followed_by_something_else_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="damaged"):
        unpack(packed("tar.gz") + b"something else")


def test_unpack_of_millions_of_empty_gzip_files_ends(unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError):
        unpack(gzip.compress(b"") * 20_000)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_unpack_of_a_zip_entry_that_is_no_file_is_refused(mode: int, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="a link or device"):
        unpack(zipped([*SOUND, (zip_entry("README.md", mode | 0o777), b"/etc/passwd")]))  # type: ignore[list-item]


@pytest.mark.parametrize("flag", [0, 6, 13])
def test_unpack_of_an_encrypted_zip_is_refused(flag: int, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="encrypted"):
        unpack(_zip_with(flags=1 << flag))


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
def test_unpack_of_a_zip_packed_in_an_unusual_way_is_refused(method: int, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match="unusual way"):
        unpack(_zip_with(method=method))


def _zip_with(  # one stored entry whose directory and own header can be told to lie
    *,
    flags: int = 0,
    method: int = 0,
    name: bytes = b"README.md",
    own_name: bytes = b"README.md",
    data: bytes = b"hello",
    size: int | None = None,
    own_size: int | None = None,
    packed_bytes: int | None = None,
    checksum: int | None = None,
    offset: int = 0,
    disk: int = 0,
    num_entries: int = 1,
    gap: bytes = b"",
) -> bytes:
    size = len(data) if size is None else size
    packed_bytes = len(data) if packed_bytes is None else packed_bytes
    checksum = zlib.crc32(data) if checksum is None else checksum
    own = (checksum, packed_bytes, size if own_size is None else own_size)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, flags, method, 0, 0, *own, len(own_name), 0) + own_name + data
    names = (len(name), 0, 0, disk, 0, 0, offset)
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, flags, method, 0, 0, checksum, packed_bytes, size, *names)
    directory = (entry + name) * min(num_entries, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, num_entries, num_entries, len(directory), len(local + gap), 0)
    return local + gap + directory + end


def test_unpack_of_a_zip_written_by_hand_gives_its_file(unpack: Unpack) -> None:
    assert unpack(_zip_with()) == {"README.md": b"hello"}


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"own_name": b"card.md"}, "different things"),
        ({"own_size": 4}, "different things"),
        ({"checksum": 1}, "do not match"),
        ({"size": 4}, "do not match"),
        ({"size": 6}, "do not match"),
        ({"packed_bytes": 4, "size": 4}, "do not match"),
        ({"packed_bytes": 5000}, "share their bytes"),
        ({"packed_bytes": 0xFFFFFFFF}, "zip64"),
        ({"size": 0xFFFFFFFF}, "zip64"),
        ({"offset": 0xFFFFFFFF}, "zip64"),
        ({"offset": 3}, "malformed"),
        ({"disk": 1}, "malformed"),
        ({"num_entries": 0}, "malformed"),
        ({"num_entries": 2}, "malformed"),
        ({"num_entries": 0xFFFF}, "zip64"),
        ({"name": b"..", "own_name": b".."}, "holds the path"),
        ({"name": b"news/", "own_name": b"news/"}, "bytes of its own"),
        ({"name": b"README.md\x00.txt", "own_name": b"README.md\x00.txt"}, "holds the path"),
        ({"name": b"\xff", "own_name": b"\xff"}, "ASCII"),
    ],
)
def test_unpack_of_a_zip_that_lies_is_refused(lie: dict[str, object], message: str, unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError, match=message):
        unpack(_zip_with(**lie))  # type: ignore[arg-type]


def test_unpack_of_a_zip_that_hides_its_size_stops_there(unpack: Unpack) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(bytes(40 << 20)) + deflate.flush()
    with pytest.raises(InvalidAdapterError, match="do not match"):
        unpack(_zip_with(method=8, data=data, size=5))


def test_unpack_of_a_zip_after_other_bytes_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidAdapterError):
        unpack(b"PK\x03\x04 other bytes" + packed("zip"))


def test_unpack_of_zip_entries_that_share_their_bytes_is_refused(unpack: Unpack) -> None:
    # Each local header lies in the bytes of the one before: small to send, huge to unpack.
    inner = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(b"x"), 1, 1, 7, 0) + b"card.mdx"
    outer = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(inner), len(inner), len(inner), 9, 0)
    local = outer + b"README.md" + inner
    directory = b""
    for name, data, offset in ((b"README.md", inner, 0), (b"card.md", b"x", len(outer) + 9)):
        sizes = (zlib.crc32(data), len(data), len(data))
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *sizes, len(name), 0, 0, 0, 0, 0, offset
        )
        directory += name
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), len(local), 0)
    with pytest.raises(InvalidAdapterError, match="share their bytes"):
        unpack(local + directory + end)


def test_unpack_of_a_zip_file_twice_is_refused(unpack: Unpack) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped([*SOUND, ("card.md", b"")])
    with pytest.raises(InvalidAdapterError, match="twice"):
        unpack(data)


@pytest.mark.parametrize("kind", KINDS)
def test_unpack_holds_a_chunk_in_memory_not_the_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(packed(kind, {CONFIG: b"{}", WEIGHTS: bytes(12 << 20)}))
    (tmp_path / "into").mkdir()
    tracemalloc.start()
    unpack_archive(tmp_path / "archive", tmp_path / "into", max_file_bytes=1 << 30, max_text_bytes=1000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


ARCHIVES = [packed(kind, folder=folder) for kind in KINDS for folder in ("", "news/")]
CHANGES = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=12), st.integers(0, 600)), min_size=1, max_size=6
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.sampled_from(ARCHIVES), changes=CHANGES, repair=st.booleans())
def test_unpack_of_spoilt_archives_raises_nothing_but_adapter_errors(
    data: bytes, changes: list[tuple[int, bytes, int]], repair: bool, unpack: Unpack, tmp_path: Path
) -> None:
    spoilt = bytearray(data)
    for number, piece, num_bytes in changes:
        start = number % (len(spoilt) + 1)
        spoilt[start : start + num_bytes] = piece
    if repair and spoilt[156:157]:
        # With a right sum a spoilt tar header gets past the first check.
        spoilt[148:156] = b" " * 8
        spoilt[148:156] = b"%06o\x00 " % sum(spoilt[:512])
    before = {path.name for path in tmp_path.iterdir()} | {"archive", "into"}
    try:
        files = unpack(bytes(spoilt))
    except AdapterError:
        pass
    else:
        assert files.keys() <= {*FILES, "medley.json", "README.md"}
        for path in (tmp_path / "into").iterdir():
            path.unlink()
    assert {path.name for path in tmp_path.iterdir()} == before
