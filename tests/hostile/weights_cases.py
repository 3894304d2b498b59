"""Weights files that lie: names, shapes, values, and every number of a safetensors header."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from server.engine.fake import FAKE_BASE
from tests.fixtures.adapters import lora_config, lora_tensors, safetensors_bytes, with_header
from tests.hostile.cases import LIMITS, PATHS, A, B, Cases, Upload, prompt_files, tensors, with_tensors

CASES = Cases()
_EIGHT = b"\0" * 8
_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_GONE = "base_model.model.decoder.block.9.layer.0.SelfAttention.q"


def _of_dtype(dtype: str, item_bytes: int) -> bytes:
    """A sound LoRA's names and shapes, with zeros of another dtype."""
    header: dict[str, object] = {}
    end = 0
    for name, array in tensors().items():
        start, end = end, end + array.size * item_bytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    return with_header(header, b"\0" * end)


def _zipped_torch_file() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"lora_A": [1.0]}))
        archive.writestr("archive/version", "3\n")
    return target.getvalue()


def _names_and_shapes() -> None:
    CASES.tensors("a-without-b", "has no lora_B", B=None)
    CASES.tensors("b-without-a", "has no lora_A", A=None)
    CASES.tensors("ranks-of-a-and-b-differ", "differ in rank", A=np.ones((3, 8)))
    CASES.tensors("a-of-another-width", "do not fit", WrongBaseError, A=np.ones((4, 9)))
    CASES.tensors("b-of-another-height", "do not fit", WrongBaseError, B=np.ones((7, 4)))
    CASES.tensors("a-of-one-dimension", "two dimensions", A=np.ones(32))
    CASES.tensors("rank-0", "above 0", A=np.ones((0, 8)), B=np.ones((8, 0)))
    CASES.tensors("rank-other-than-the-config-says", "says 4", A=np.ones((5, 8)), B=np.ones((8, 5)))
    CASES.files(
        "rank-over-the-limit",
        AdapterTooLargeError,
        "rank 17",
        config=lora_config(17),
        weights=safetensors_bytes(tensors(17)),
    )
    CASES.tensors(
        "layer-the-base-has-not",
        "no linear layer",
        WrongBaseError,
        **{f"{_GONE}.lora_A.weight": np.ones((4, 8)), f"{_GONE}.lora_B.weight": np.ones((8, 4))},
    )
    CASES.tensors("full-tensor-of-the-base", "modules_to_save", UnsupportedAdapterError, **{f"{_GONE}.weight": [1]})
    CASES.tensors("tensor-of-another-family", "LoKr", UnsupportedAdapterError, **{f"{_GONE}.lokr_w1": [[1]]})
    CASES.tensors("unknown-tensor", "unknown tensor", **{"optimizer.state": [1]})
    CASES.tensors("tensor-named-by-escapes", "unknown tensor", **{"\x1b[2J\u202e" * 99: [1]})
    CASES.tensors("tensor-named-as-a-path", "unknown tensor", **{"../../etc/passwd": [1]})
    CASES.files("no-tensors", InvalidAdapterError, "no tensors", weights=safetensors_bytes({}))
    CASES.files(
        "two-adapters-in-one-file",
        InvalidAdapterError,
        "more than one adapter",
        weights=safetensors_bytes(
            lora_tensors({PATHS[0]: 4}, FAKE_BASE, adapter_name="a")
            | lora_tensors({PATHS[1]: 4}, FAKE_BASE, adapter_name="b")
        ),
    )
    wide = np.ones((6, FAKE_BASE.d_model + 1), np.float32)
    CASES.add("prompt-of-another-width", WrongBaseError, "9 wide", lambda: Upload(prompt_files(wide)))
    rows = np.ones((18, FAKE_BASE.d_model), np.float32)
    CASES.add(
        "prompt-over-the-limit",
        AdapterTooLargeError,
        "9 virtual tokens",
        lambda: Upload(prompt_files(rows, num_virtual_tokens=9)),
    )
    CASES.add(
        "prompt-of-other-rows-than-the-config-says",
        InvalidAdapterError,
        "18 rows",
        lambda: Upload(prompt_files(rows, num_virtual_tokens=5)),
    )


def _values() -> None:
    CASES.tensors("nan", "NaN", A=np.full((4, 8), np.nan))
    CASES.tensors("infinity", "infinity", B=np.full((8, 4), -np.inf))
    CASES.tensors("finite-in-bfloat16-only", "too large", A=np.full((4, 8), 3e38))
    CASES.tensors("too-large-for-float16", "too large", A=np.full((4, 8), 65520.0))
    CASES.tensors("too-large-for-float16-times-the-scaling", "too large", B=np.full((8, 4), 40_000.0))
    CASES.files(
        "nan-in-bfloat16",
        InvalidAdapterError,
        "NaN",
        weights=safetensors_bytes(with_tensors(A=np.full((4, 8), np.nan)), "BF16"),
    )
    CASES.files(
        "zeros-times-a-scaling-beyond-float16",
        InvalidAdapterError,
        "too large",
        config=lora_config(4, 1e6),
        weights=safetensors_bytes({name: array * 0 for name, array in tensors().items()}),
    )
    rows = np.zeros((2, FAKE_BASE.d_model), np.float32)
    rows[1, 0] = np.nan
    CASES.add(
        "nan-in-the-unused-half-of-a-prompt",
        InvalidAdapterError,
        "NaN",
        lambda: Upload(prompt_files(rows, num_virtual_tokens=1)),
    )
    for dtype, item_bytes in (("F64", 8), ("I32", 4), ("BOOL", 1), ("F8_E4M3", 1), ("F8_E8M0", 1), ("C64", 8)):
        CASES.files(f"dtype-{dtype}", InvalidAdapterError, f"dtype {dtype}", weights=_of_dtype(dtype, item_bytes))
    CASES.files("dtype-unknown", InvalidAdapterError, "unknown dtype", weights=_of_dtype("F4", 1))


def _file() -> None:
    sound = safetensors_bytes(tensors())
    weights = {
        "truncated": (sound[:-1], "cut off"),
        "truncated-in-the-header": (sound[:40], "cut off"),
        "padded": (sound + b"\0", "padded"),
        "one-byte": (b"\0", "cut off, or no safetensors"),
        "seven-bytes": (b"\0" * 7, "cut off, or no safetensors"),
        "header-length-0": (struct.pack("<Q", 0) + sound[8:], "not valid JSON"),
        "header-length-beyond-the-file": (struct.pack("<Q", len(sound)) + sound[8:], "cut off"),
        "header-length-1-gb": (struct.pack("<Q", 1 << 30) + sound[8:], "cut off"),
        "header-length-negative": (struct.pack("<q", -1) + sound[8:], "cut off"),
        "header-length-2-to-the-63": (struct.pack("<Q", 1 << 63) + sound[8:], "cut off"),
        "header-length-one-short": (struct.pack("<Q", struct.unpack("<Q", sound[:8])[0] - 1) + sound[8:], "JSON"),
        "pickle-as-safetensors": (pickle.dumps({"lora_A": [1.0]}), "a Python pickle"),
        "torch-zip-as-safetensors": (_zipped_torch_file(), "as torch.save writes"),
        "gguf-as-safetensors": (b"GGUF" + b"\1" * 40, "GGUF"),
        "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "Git LFS"),
        "html-as-safetensors": (b"<!doctype html><html>" * 9, "no safetensors file"),
    }
    for title, (data, message) in weights.items():
        CASES.files(title, InvalidAdapterError, message, weights=data)
    CASES.files(
        "header-over-its-limit",
        AdapterTooLargeError,
        "safetensors header",
        weights=lambda: with_header("{}" + " " * LIMITS.max_header_bytes),
    )
    CASES.files(
        "weights-over-their-limit", AdapterTooLargeError, "bytes", weights=lambda: b"\0" * (LIMITS.max_file_bytes + 1)
    )
    many = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(8193)}
    CASES.files("too-many-tensors", AdapterTooLargeError, "8193 tensors", weights=lambda: with_header(many))


def _header() -> None:
    second = {**_F32, "data_offsets": [4, 12]}
    CASES.header("offsets-overlap", "overlap", {A: _F32, B: second}, b"\0" * 12)
    CASES.header("offsets-leave-a-gap", "gap", {A: _F32, B: {**_F32, "data_offsets": [12, 20]}}, b"\0" * 20)
    CASES.header("offsets-begin-late", "gap", {A: second}, b"\0" * 12)
    CASES.header("offsets-name-the-same-bytes-twice", "overlap", {A: _F32, B: _F32}, _EIGHT)
    CASES.header("offsets-out-of-order", "do not fit", {A: {**_F32, "data_offsets": [8, 0]}}, _EIGHT)
    CASES.header("offsets-beyond-the-file", "cut off", {A: {**_F32, "shape": [4], "data_offsets": [0, 16]}}, _EIGHT)
    CASES.header("offsets-negative", "do not fit", {A: {**_F32, "data_offsets": [-8, 0]}}, _EIGHT)
    CASES.header("offsets-three", "do not fit", {A: {**_F32, "data_offsets": [0, 4, 8]}}, _EIGHT)
    CASES.header("shape-lies", "do not fit", {A: {**_F32, "shape": [3]}}, _EIGHT)
    CASES.header("shape-overflows", "do not fit", {A: {**_F32, "shape": [2**62, 4]}}, _EIGHT)
    CASES.header("shape-of-a-terabyte", "do not fit", {A: {**_F32, "shape": [2**38]}}, _EIGHT)
    CASES.header("shape-negative", "impossible shape", {A: {**_F32, "shape": [-1, -2]}}, _EIGHT)
    CASES.header("shape-of-fractions", "impossible shape", {A: {**_F32, "shape": [2.0]}}, _EIGHT)
    CASES.header("shape-of-nine-dimensions", "impossible shape", {A: {**_F32, "shape": [1] * 8 + [2]}}, _EIGHT)
    CASES.header("entry-with-more-fields", "only", {A: {**_F32, "code": "import os"}}, _EIGHT)
    CASES.header("entry-is-no-object", "only", {A: [0, 8]}, _EIGHT)
    CASES.header("metadata-is-no-text", "text to text", {"__metadata__": {"format": 1}, A: _F32}, _EIGHT)
    twice = f'{{"{A}": {json.dumps(_F32)}, "{A}": {json.dumps(_F32)}}}'
    CASES.header("tensor-named-twice", "appears twice", twice, _EIGHT)
    CASES.header("header-is-a-list", "must be a JSON object", "[]")
    CASES.header("header-nests-without-end", "not valid JSON", '{"a":' * 100_000)
    CASES.header("header-of-brackets", "too many objects", '{"a":[' + "[]," * 300_000 + "[]]}")
    CASES.header("header-with-a-byte-order-mark", "not valid JSON", "\ufeff{}")
    CASES.header("header-with-half-a-surrogate", "not valid JSON", '{"\\ud800": ' + json.dumps(_F32) + "}", _EIGHT)
    CASES.files(
        "header-not-utf-8", InvalidAdapterError, "not valid JSON", weights=struct.pack("<Q", 4) + b'{"\xff}' + _EIGHT
    )


_names_and_shapes()
_values()
_file()
_header()
