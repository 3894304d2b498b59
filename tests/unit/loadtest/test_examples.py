import lzma
from pathlib import Path

import pytest

from loadtest.examples import SHIPPED_EXAMPLES, ExampleFileError, read_examples

LINES = """{"id": "a", "split": "train", "dialogue": "x", "summaries": ["s"], "topics": ["t"]}

{"split": "validation", "text": "y"}
"""


def test_examples_plain_and_compressed_read_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "e.jsonl", tmp_path / "e.jsonl.xz"
    plain.write_text(LINES)
    packed.write_bytes(lzma.compress(LINES.encode()))
    examples = read_examples(plain)
    assert examples == read_examples(packed)
    assert (examples[0].name, examples[0].summaries, examples[0].topics) == ("a", ("s",), ("t",))
    assert (examples[1].name, examples[1].text, examples[1].summaries) == ("3", "y", ())
    assert [example.text for example in read_examples(plain, split="validation")] == ["y"]
    assert len(read_examples(plain, limit=1)) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", ":1: not JSON"),
        ("[]", ":1: a line must be"),
        ('{"dialogue": " "}', ":1: needs a non-empty"),
        ('{"dialogue": "x", "summaries": "s"}', "'summaries' must be"),
        ("", "has no example"),
    ],
)
def test_examples_malformed_says_where(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(ExampleFileError, match=reason):
        read_examples(path)


@pytest.mark.parametrize("name", ["absent.jsonl", "broken.jsonl.xz"])
def test_examples_unreadable_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.jsonl.xz").write_bytes(b"not xz at all")
    with pytest.raises(ExampleFileError, match="cannot read"):
        read_examples(tmp_path / name)


def test_shipped_examples_have_references_and_topics() -> None:
    examples = read_examples(SHIPPED_EXAMPLES)
    assert len(examples) == 5
    for example in examples:
        assert example.text.startswith("#Person1#: ")
        assert example.summaries
        assert example.topics
