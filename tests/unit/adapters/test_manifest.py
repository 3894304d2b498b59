"""The manifest, names, and the strict JSON reader below them."""

import json

import pytest

from adapters.errors import InvalidAdapterError, InvalidAdapterReferenceError
from adapters.manifest import AdapterKind, AdapterManifest, BaseModelSpec, check_name
from adapters.strict_json import parse_object, show

MANIFEST = AdapterManifest(
    "news",
    AdapterKind.LORA,
    base_model="medley-mini",
    base_fingerprint="a" * 64,
    rank=8,
    target_modules=("q", "v"),
    task="summarization",
    licence="MIT",
    description="Für alle.",
    scores={"rouge1": 31.5},
    metrics=("bleu", "rouge"),
)


def test_manifest_written_and_read_is_the_same() -> None:
    assert AdapterManifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_manifest_with_name_and_kind_only_is_read() -> None:
    assert AdapterManifest.from_json('{"name": "x", "kind": "prompt"}') == AdapterManifest("x", AdapterKind.PROMPT)


def test_manifest_without_metrics_is_written_as_servers_before_the_field_read_it() -> None:
    written = AdapterManifest("x", AdapterKind.PROMPT).to_json()
    assert "metrics" not in json.loads(written)
    assert AdapterManifest.from_json(written).metrics == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": None},
        {"kind": "dora"},
        {"kind": None},
        {"rank": -1},
        {"rank": 2**31},
        {"rank": True},
        {"rank": 1.0},
        {"target_modules": "q"},
        {"target_modules": [1]},
        {"num_virtual_tokens": "3"},
        {"licence": 1},
        {"scores": []},
        {"scores": {"rouge1": "31"}},
        {"scores": {"rouge1": True}},
        {"scores": {"rouge1": 10**400}},
        {"metrics": "rouge"},
        {"metrics": [1]},
        {"metrics": ["\x1b[2J"]},
        {"unknown": 1},
    ],
)
def test_manifest_with_a_wrong_field_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidAdapterError, match=r"medley\.json"):
        AdapterManifest.from_json(json.dumps(json.loads(MANIFEST.to_json()) | fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 2}}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a":' * 17 + b"1" + b"}" * 17,
        b'{"a":' * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
    ],
)
def test_parse_object_of_anything_but_a_plain_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidAdapterError, match="the file"):
        parse_object(data, "the file")


def test_parse_object_of_sound_json_is_read() -> None:
    assert parse_object('{"a": [1, {"é": null}], "b": 1.5}'.encode(), "it") == {"a": [1, {"é": None}], "b": 1.5}
    assert parse_object(b'{"a":' * 15 + b"{}" + b"}" * 15, "it")


def test_show_is_short_and_printable() -> None:
    assert show("a\x1b[2Jé\n") == r"'a\x1b[2J\xe9\n'"
    assert len(show("x" * 10_000)) == 80


@pytest.mark.parametrize("name", ["a", "a1", "dialogsum-prompt", "a.b_c-d", "0", "a" * 63])
def test_check_name_of_a_good_name_returns_it(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "..", "a..b", ".a", "a.", "-a", "a b", "a\x00", "a\n", "é", "a" * 64, "a:1", "a@b", "a+b"]
)
def test_check_name_of_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        check_name(name)


def test_fingerprint_depends_on_shapes_not_on_order_weights_or_name() -> None:
    spec = BaseModelSpec("a", "T5", 8, 32, {"q": (8, 8), "v": (4, 8)}, "w")
    same = BaseModelSpec("b", "T5", 8, 32, {"v": (4, 8), "q": (8, 8)}, None)
    assert spec.fingerprint == same.fingerprint
    for other in (
        BaseModelSpec("a", "T6", 8, 32, spec.linear_shapes),
        BaseModelSpec("a", "T5", 9, 32, spec.linear_shapes),
        BaseModelSpec("a", "T5", 8, 33, spec.linear_shapes),
        BaseModelSpec("a", "T5", 8, 32, {"q": (8, 8), "v": (8, 4)}),
        BaseModelSpec("a", "T5", 8, 32, {"q": (8, 8)}),
    ):
        assert other.fingerprint != spec.fingerprint
