"""Fuzzing of all an upload holds: nothing but our own errors; what is taken is finite and of the base's shapes."""

import copy
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.adapter_weights import AdapterWeights, PrefixWeights, SoftPromptWeights
from adapters.codec import inspect_adapter, read_adapter
from adapters.errors import AdapterError, PromptTemplateError
from adapters.manifest import AdapterManifest
from adapters.prompting import MAX_NUM_USES, MAX_TEMPLATE_BYTES, check_template, render
from server.api.http.multipart import MultipartReader
from server.core.errors import MedleyError
from server.engine.fake import FAKE_BASE
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.fixtures.peft_files import ia3_files, lora_files, norm_files, prefix_files, prompt_files
from tests.hostile.cases import LIMITS, MANIFEST, Files

FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FAMILIES: Mapping[str, Callable[[], Files]] = {
    "lora": lora_files,
    "prompt": prompt_files,
    "ia3": ia3_files,
    "norm": norm_files,
    "prefix": prefix_files,
}
SOUND = {family: make() for family, make in FAMILIES.items()}
SPECIAL = st.sampled_from(
    ["", "F32", "F16", "BF16", "I8", "q", "LORA", "\x00", "\ud800", "a" * 300, "{{ text }}", "../x"]
)
NUMBERS = (
    st.sampled_from([-1, 0, 1, 2, 4, 2**31, 2**63, 2**64, 10**400, 1e308, 0.5]) | st.integers(-9, 99) | st.floats()
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | SPECIAL | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SPECIAL | st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def _arrays(weights: AdapterWeights) -> list[tuple[np.ndarray, tuple[int | None, ...]]]:
    """Every array with the shape it must have; None where the adapter chooses."""
    width, base = FAKE_BASE.d_model, FAKE_BASE
    if isinstance(weights, SoftPromptWeights):
        return [(weights.embeddings, (None, width))]
    if isinstance(weights, PrefixWeights):
        shape = (base.num_decoder_layers, None, base.num_heads, base.d_kv)
        return [(weights.keys, shape), (weights.values, shape)]
    found: list[tuple[np.ndarray, tuple[int | None, ...]]] = [(gamma, (width,)) for gamma in weights.norms.values()]
    for path, change in weights.linears.items():
        out, into = base.linear_shapes[path]
        rank = len(change.lora.lora_a) if change.lora else 0
        assert rank <= LIMITS.max_rank
        pairs = [(change.lora.lora_a, (rank, into)), (change.lora.lora_b, (out, rank))] if change.lora else []
        vectors = [(change.magnitude, out), (change.output_scale, out), (change.bias, out), (change.input_scale, into)]
        found += pairs + [(vector, (size,)) for vector, size in vectors if vector is not None]
    return found


def _check(error: AdapterError | MedleyError) -> None:
    """A message for people: short, and nothing in it that a terminal would obey."""
    assert error.message.isprintable()
    assert len(error.message) < 500


def _survives(folder: Path, files: Files) -> bool:
    """Write, inspect and read: whether the adapter is taken; fails if anything but our own error comes of it."""
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        weights = read_adapter(folder, FAKE_BASE, LIMITS)
    except AdapterError as error:
        _check(error)
        with pytest.raises(AdapterError):
            inspect_adapter(folder, FAKE_BASE, LIMITS, "x")
        return False
    arrays = _arrays(weights)
    assert arrays
    for array, shape in arrays:
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert len(array.shape) == len(shape)
        assert all(wanted in (None, actual) for actual, wanted in zip(array.shape, shape, strict=True))
    return True


def _header_of(weights: bytes) -> tuple[dict[str, object], bytes]:
    end = 8 + struct.unpack("<Q", weights[:8])[0]
    return json.loads(weights[8:end]), weights[end:]


def _spoil(data: st.DataObject, node: object, others: st.SearchStrategy[object]) -> object:
    """A copy of a JSON value with a few places in it changed."""
    root = [copy.deepcopy(node)]
    for _ in range(data.draw(st.integers(1, 3))):
        parent: object = root
        while True:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))  # type: ignore[arg-type,call-overload]
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            child = parent[key]  # type: ignore[index]
            if isinstance(child, dict | list) and child and data.draw(st.booleans()):
                parent = child
                continue
            action = data.draw(st.sampled_from(["replace", "near", "remove", "add"]))
            if action == "near" and type(child) is int:
                parent[key] = child + data.draw(st.integers(-9, 9))  # type: ignore[index]
            elif action == "remove" and parent is not root:
                del parent[key]  # type: ignore[attr-defined]
            elif action == "add" and isinstance(parent, dict):
                parent[data.draw(SPECIAL)] = data.draw(others)
            else:
                parent[key] = data.draw(others)  # type: ignore[index]
            break
    return root[0]


def _json_bytes(value: object) -> bytes:
    """JSON as Python writes it, with NaN and lone surrogates where there are any."""
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_files_survive(folder: Path, family: str) -> None:
    assert _survives(folder, SOUND[family])


@FUZZ
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_header_with_spoilt_fields_is_read_right_or_refused(folder: Path, data: st.DataObject, family: str) -> None:
    header, tail = _header_of(SOUND[family][WEIGHTS])
    text = _json_bytes(_spoil(data, header, JSON))
    length = data.draw(st.sampled_from([len(text)] * 5 + [0, len(text) - 1, len(text) + 1, 2**40, 2**63, 2**64 - 1]))
    _survives(folder, SOUND[family] | {WEIGHTS: struct.pack("<Q", length) + text + tail})


@FUZZ
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_weights_with_spoilt_bytes_are_read_right_or_refused(folder: Path, data: st.DataObject, family: str) -> None:
    weights = bytearray(SOUND[family][WEIGHTS])
    for _ in range(data.draw(st.integers(0, 4))):
        weights[data.draw(st.integers(0, len(weights) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 4, 9]))
    added = data.draw(st.binary(max_size=4))
    _survives(folder, SOUND[family] | {WEIGHTS: bytes(weights[: len(weights) - cut]) + added})


@FUZZ
@given(raw=st.binary(max_size=64), family=st.sampled_from(sorted(FAMILIES)))
def test_weights_of_any_bytes_are_refused(folder: Path, raw: bytes, family: str) -> None:
    assert not _survives(folder, SOUND[family] | {WEIGHTS: raw})


@FUZZ
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_config_with_spoilt_fields_is_read_right_or_refused(folder: Path, data: st.DataObject, family: str) -> None:
    config = json.loads(SOUND[family][CONFIG])
    for key in data.draw(st.lists(st.sampled_from(_CONFIG_KEYS), max_size=3)):
        config[key] = data.draw(JSON)
    _survives(folder, SOUND[family] | {CONFIG: _json_bytes(_spoil(data, config, JSON))})


@FUZZ
@given(raw=st.binary(max_size=64) | JSON.map(_json_bytes))
def test_config_of_anything_is_refused(folder: Path, raw: bytes) -> None:
    assert not _survives(folder, SOUND["lora"] | {CONFIG: raw})


@FUZZ
@given(data=st.data())
def test_manifest_with_spoilt_fields_is_read_right_or_refused(folder: Path, data: st.DataObject) -> None:
    manifest = json.loads(AdapterManifest("x", inspect_kind(folder), base_fingerprint=FAKE_BASE.fingerprint).to_json())
    _survives_manifest(folder, _json_bytes(_spoil(data, manifest, JSON)))


@FUZZ
@given(raw=st.binary(max_size=64) | JSON.map(_json_bytes))
def test_manifest_of_anything_is_refused(folder: Path, raw: bytes) -> None:
    assert not _survives_manifest(folder, raw)


@FUZZ
@given(
    pieces=st.lists(
        st.sampled_from(
            ["{{ text }}", "{{", "}}", "{%", "%}", "{#", "text", " ", "|e", ".a", "[0]", "'", '"', "\\ud800", "("]
        )
        | st.text(max_size=4),
        max_size=24,
    ),
    times=st.sampled_from([1, 1, 1, 99]),
)
def test_template_of_anything_prints_the_text_or_is_refused(pieces: list[str], times: int) -> None:
    template = "".join(pieces) * times
    try:
        check_template(template)
    except PromptTemplateError as error:
        _check(error)
        return
    text = "{{ secret }}\u00e9" * 50
    shown = render(template, text)
    shown.encode()
    assert text in shown
    assert len(shown) <= MAX_NUM_USES * len(text) + MAX_TEMPLATE_BYTES


PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="adapter_config.json"\r\n\r\n{"r": 4}\r\n'
# As the framework gives headers.
LATIN_1 = st.characters(max_codepoint=255)
BODY = PART * 2 + b"--b--\r\n"


@FUZZ
@given(data=st.data())
def test_multipart_of_anything_gives_parts_or_our_error(data: st.DataObject) -> None:
    body = bytearray(BODY if data.draw(st.booleans()) else data.draw(st.binary(max_size=200)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"--b", b"\r\n"])
        )
    boundary = data.draw(
        st.sampled_from(["b"] * 5 + ["", '"', "a" * 300, "b; x=y", "\r\n"]) | st.text(LATIN_1, max_size=9)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    pieces = [bytes(body[start:end]) for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    _drive(boundary, pieces)


def test_multipart_that_is_sound_gives_its_parts() -> None:
    assert _drive("b", [BODY]) == [("files", "adapter_config.json", b'{"r": 4}')] * 2


_CONFIG_KEYS = sorted(
    {key for files in SOUND.values() for key in json.loads(files[CONFIG])}
    | {"rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias", "init_lora_weights", "modules_to_save"}
    | {"base_model_name_or_path", "num_tasks", "fan_in_fan_out", "bias"}
)


def inspect_kind(folder: Path) -> object:
    """The kind of the sound LoRA, as the codec finds it."""
    assert _survives(folder, SOUND["lora"])
    return inspect_adapter(folder, FAKE_BASE, LIMITS, "x").kind


def _survives_manifest(folder: Path, manifest: bytes) -> bool:
    """As :func:`_survives`, where medley.json may also contradict tensors that read well."""
    for name, data in {**SOUND["lora"], MANIFEST: manifest}.items():
        (folder / name).write_bytes(data)
    try:
        found = inspect_adapter(folder, FAKE_BASE, LIMITS, "x")
        if found.prompt_template:
            check_template(found.prompt_template)
    except AdapterError as error:
        _check(error)
        return False
    assert AdapterManifest.from_json(found.to_json()) == found
    return True


def _drive(boundary: str, pieces: list[bytes]) -> list[tuple[str, str, bytes]]:
    """Feed a body to the reader in these pieces and return its parts; none where it was refused."""

    async def body():  # type: ignore[no-untyped-def]
        for piece in pieces:
            yield piece

    parts: list[tuple[str, str, bytes]] = []
    try:
        reading = MultipartReader(f"multipart/form-data; boundary={boundary}").read(body())
        while True:
            try:
                reading.__anext__().send(None)  # nothing here waits, so that no loop is needed
            except StopIteration as step:
                part = step.value
                if part.data == b"":
                    parts.append((part.field, part.file_name, b""))
                else:
                    field, name, data = parts.pop()
                    parts.append((field, name, data + part.data))
    except StopAsyncIteration:
        return parts
    except MedleyError as error:
        _check(error)
        return []
