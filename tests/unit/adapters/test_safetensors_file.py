"""The header parser: what the format allows is read exactly, anything else is refused with our own error."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from adapters.errors import AdapterError, AdapterTooLargeError, InvalidAdapterError
from adapters.safetensors_file import HeaderLimits, open_regular, read_header, read_tensor
from tests.fixtures.adapters import safetensors_bytes, with_header

LIMITS = HeaderLimits(max_header_bytes=1 << 16, max_tensors=8)
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def parse(folder: Path, data: bytes, limits: HeaderLimits = LIMITS) -> dict[str, np.ndarray]:
    """Return every tensor of a file with these bytes."""
    (folder / "file").write_bytes(data)
    with open_regular(folder / "file") as file:
        return {name: read_tensor(file, name, entry) for name, entry in read_header(file, limits).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("header")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_read_tensor_of_the_reference_writer_is_exact(folder: Path, dtype: type) -> None:
    random = np.random.default_rng(0)
    tensors = {"b": random.normal(size=(3, 5)).astype(dtype), "a": random.normal(size=(1, 2)).astype(dtype)}
    found = parse(folder, save(tensors, metadata={"format": "pt"}))
    assert set(found) == {"a", "b"}
    for name, array in tensors.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


def test_read_tensor_of_bfloat16_is_the_upper_half(folder: Path) -> None:
    values = np.array([[1.0, -2.5, 3.3895314e38, 1e-40, 0.0]], np.float32)
    exact = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(parse(folder, safetensors_bytes({"x": values}, "BF16"))["x"], exact)


def test_read_tensor_of_nan_in_any_dtype_stays_nan_without_a_warning(folder: Path) -> None:
    for dtype, bits in (("F16", b"\x01\x7c"), ("BF16", b"\x81\x7f"), ("F32", b"\x01\x00\x80\x7f")):
        data = with_header({"x": {"dtype": dtype, "shape": [1], "data_offsets": [0, len(bits)]}}, bits)
        assert np.isnan(parse(folder, data)["x"]).all()


def test_read_header_whose_length_looks_like_a_pickle_is_read(folder: Path) -> None:
    text = json.dumps({"x": F32})
    data = with_header(text + " " * (0x0280 - len(text)), b"\0" * 8)
    assert data.startswith(b"\x80\x02")
    assert set(parse(folder, data)) == {"x"}


EIGHT = b"\0" * 8
HOSTILE = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "zero header": struct.pack("<Q", 0),
    "header longer than file": struct.pack("<Q", 100) + b"{}",
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64-1": b"\xff" * 8 + b"{}",
    "not json": with_header("nope"),
    "not utf-8": struct.pack("<Q", 4) + b'{"\xff}',
    "list": with_header("[]"),
    "number": with_header("1"),
    "deep": with_header("[" * 30_000),
    "deep object": with_header({"x": {"dtype": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}}),
    "NaN": with_header('{"x": NaN}'),
    "huge integer": with_header('{"x": ' + "9" * 5000 + "}"),
    "duplicate names": with_header(f'{{"x": {json.dumps(F32)}, "x": {json.dumps(F32)}}}', EIGHT),
    "duplicate fields": with_header(
        '{"x": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT
    ),
    "half a surrogate": with_header('{"\\ud800": ' + json.dumps(F32) + "}", EIGHT),
    "metadata list": with_header({"__metadata__": []}),
    "metadata number": with_header({"__metadata__": {"a": 1}}),
    "entry is a list": with_header({"x": []}),
    "entry lacks dtype": with_header({"x": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "entry has more": with_header({"x": {**F32, "more": 1}}, EIGHT),
    "unknown dtype": with_header({"x": {**F32, "dtype": "F31"}}, EIGHT),
    "dtype list": with_header({"x": {**F32, "dtype": ["F32"]}}, EIGHT),
    "shape number": with_header({"x": {**F32, "shape": 2}}, EIGHT),
    "shape float": with_header({"x": {**F32, "shape": [2.0]}}, EIGHT),
    "shape bool": with_header({"x": {**F32, "shape": [True, 2]}}, EIGHT),
    "shape negative": with_header({"x": {**F32, "shape": [-1, -2]}}, EIGHT),
    "shape overflows": with_header({"x": {**F32, "shape": [2**62, 4]}}, EIGHT),
    "shape of 2^64": with_header({"x": {**F32, "shape": [2**64]}}, EIGHT),
    "shape of nine": with_header({"x": {**F32, "shape": [1] * 8 + [2]}}, EIGHT),
    "shape lies": with_header({"x": {**F32, "shape": [3]}}, EIGHT),
    "offsets one": with_header({"x": {**F32, "data_offsets": [8]}}, EIGHT),
    "offsets text": with_header({"x": {**F32, "data_offsets": "08"}}, EIGHT),
    "offsets negative": with_header({"x": {**F32, "data_offsets": [-8, 0]}}, EIGHT),
    "offsets reversed": with_header({"x": {**F32, "data_offsets": [8, 0]}}, EIGHT),
    "offsets past the end": with_header({"x": {**F32, "data_offsets": [8, 16]}}, EIGHT),
    "gap first": with_header({"x": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
    "gap between": with_header({"x": F32, "y": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20),
    "overlap": with_header({"x": F32, "y": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
    "same bytes twice": with_header({"x": F32, "y": F32}, EIGHT),
    "cut off": with_header({"x": F32}, b"\0" * 7),
    "padded": with_header({"x": F32}, b"\0" * 9),
    "data without tensors": with_header({}, b"\0"),
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "pickle": b"\x80\x04\x95" + b"a" * 100,
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:",
    "html": b"<!doctype html><html>" * 10,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_read_header_of_malformed_file_is_refused(folder: Path, data: bytes) -> None:
    with pytest.raises(InvalidAdapterError) as caught:
        parse(folder, data)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(("key", "word"), [("zip", "torch.save"), ("pickle", "pickle"), ("lfs pointer", "LFS")])
def test_read_header_of_another_format_says_which(folder: Path, key: str, word: str) -> None:
    with pytest.raises(InvalidAdapterError, match=word):
        parse(folder, HOSTILE[key])


def test_read_header_over_its_limits_is_too_large(folder: Path) -> None:
    with pytest.raises(AdapterTooLargeError, match="header"):
        parse(folder, with_header({"x": F32}, EIGHT), HeaderLimits(10, 8))
    many = {str(number): np.zeros(1, np.float32) for number in range(9)}
    with pytest.raises(AdapterTooLargeError, match="tensors"):
        parse(folder, safetensors_bytes(many))


@pytest.mark.parametrize("dtype", ["F64", "I32"])
def test_read_tensor_of_another_dtype_is_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(InvalidAdapterError, match=dtype):
        parse(folder, safetensors_bytes({"x": np.ones(2)}, dtype))


def test_open_regular_of_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"), open_regular(tmp_path / "link"):
        pass


def test_open_regular_of_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), open_regular(tmp_path / "pipe"):
        pass


def test_read_header_that_promises_much_allocates_little(folder: Path) -> None:
    promise = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    tracemalloc.start()
    for data in (with_header(promise, EIGHT), struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 60_000) + b"{}"):
        with pytest.raises(InvalidAdapterError):
            parse(folder, data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
SIZES = st.lists(st.integers(-1, 9) | st.sampled_from([2**31, 2**62, 2**63, 2**64]), max_size=3)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "?"]), "shape": SIZES, "data_offsets": SIZES}
)
HEADER = st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4)


@settings(max_examples=150, deadline=None)
@given(header=HEADER | JSON, data=st.binary(max_size=40))
def test_read_header_of_any_header_gives_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    file_bytes = with_header(header, data)
    try:
        found = parse(folder, file_bytes)
    except AdapterError:
        return
    # Whatever is accepted covers the data exactly once.
    widths = {"F32": 4, "F16": 2, "BF16": 2}
    assert isinstance(header, dict)
    assert sum(array.size * widths[header[name]["dtype"]] for name, array in found.items()) == len(data)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_read_header_of_a_spoilt_file_gives_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sound = bytearray(safetensors_bytes({"a": np.ones((2, 3), np.float32), "b": np.zeros((1, 2), np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(sound[: data.draw(st.integers(0, len(sound)))]) if data.draw(st.booleans()) else bytes(sound)
    try:
        found = parse(tmp_path_factory.getbasetemp(), cut)
    except AdapterError:
        return
    assert len(cut) == len(sound)
    assert sum(array.size for array in found.values()) <= len(sound)


def test_read_tensor_of_file_that_shrank_is_refused() -> None:
    data = safetensors_bytes({"x": np.ones(4, np.float32)})
    from adapters.safetensors_file import TensorEntry

    with pytest.raises(InvalidAdapterError, match="cut off"):
        read_tensor(io.BytesIO(data[:-1]), "x", TensorEntry("F32", (4,), len(data) - 16, 16))  # type: ignore[arg-type]
