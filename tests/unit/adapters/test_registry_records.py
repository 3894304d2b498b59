"""References, tags, keys and texts as strangers write them."""

import pytest

from adapters.errors import InvalidAdapterError, InvalidAdapterReferenceError
from adapters.registry import AdapterReference, parse_reference
from adapters.registry_records import check_key, check_tags, check_text


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("news", AdapterReference("news")),
        ("news:3", AdapterReference("news", version=3)),
        ("news@stable", AdapterReference("news", alias="stable")),
        ("a.b_c-9", AdapterReference("a.b_c-9")),
    ],
)
def test_parse_reference_well_formed_is_read(reference: str, expected: AdapterReference) -> None:
    assert parse_reference(reference) == expected


@pytest.mark.parametrize(
    "reference",
    [
        *("", ":1", "@a", "a:", "a@", "a:0", "a:-1", "a:01", "a:1.0", "a:9999999999", "a:x", "a:1@b", "a@b:1", "a@b@c"),
        *("../etc/passwd", "a/b", "a\\b", "A", "ä", "a b", "a\n", "a\x00", "a..b", ".a", "a-", "a" * 64),
        *("a@" + "b" * 64, "a:\uff11", "x" * 100_000),
    ],
)
def test_parse_reference_malformed_is_refused(reference: str) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        parse_reference(reference)


def test_check_tags_are_sorted_and_each_once() -> None:
    assert check_tags(["b", "a", "b"]) == ("a", "b")
    assert len(check_tags(f"t{number}" for number in range(32))) == 32


@pytest.mark.parametrize("tags", [[""], ["A"], ["a b"], ["a" * 64], [f"t{number}" for number in range(33)]])
def test_check_tags_malformed_or_too_many_are_refused(tags: list[str]) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        check_tags(tags)


def test_check_key_printable_is_kept() -> None:
    for key in ("", "a b~!", "x" * 128):
        assert check_key(key) == key


@pytest.mark.parametrize("key", ["x" * 129, "a\n", "ä", "\x7f", "\x00"])
def test_check_key_other_is_refused(key: str) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        check_key(key)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 65_537])
def test_check_text_no_database_keeps_is_refused(text: str) -> None:
    with pytest.raises(InvalidAdapterError, match="licence"):
        check_text(text, "licence")
