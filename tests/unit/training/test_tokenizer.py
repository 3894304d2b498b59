"""The tokenizer gives back any text exactly."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters

pytestmark = pytest.mark.torch

COMMITTED = Path(adapters.__file__).parent / "library" / "medley-mini"
TEXTS = [
    "#Person1#: Hi, #Person2#'s car costs $1,299.50!",
    "two  spaces, a\ttab,\r\n\r\nlines \n and a space at the end ",
    "Élève naïf, garçon, œuvre, 12 h 30, « bonjour »",
    "emoji 👩‍👩‍👧 🎉, 中文, العربية, \u200b zero width",
    " leading space and #Person12# and #PersonX# and # Person1 #",
    "<b>markup</b> & entities &amp; {braces} [brackets]",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(COMMITTED)


@pytest.mark.parametrize("text", TEXTS)
def test_committed_tokenizer_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


# Special tokens written out in a text are read as special tokens; nothing else is ever changed.
@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: "<" not in text))
def test_committed_tokenizer_any_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_committed_tokenizer_special_ids_are_those_of_t5(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("a")["input_ids"][-1] == 1
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == 3


def test_committed_tokenizer_speaker_names_and_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.tokenize("#Person1#")) == 1
    assert tokenizer.tokenize("Ask #Person2#.")[-2:] == ["#Person2#", "."]
    assert tokenizer.tokenize("2042") == ["2", "0", "4", "2"]


def test_train_tokenizer_same_texts_give_the_same_tokenizer(tiny_tokenizer):
    from tests.unit.training.conftest import TEXTS as CORPUS
    from training.data.tokenizer import train_tokenizer

    again = train_tokenizer(CORPUS * 5, vocab_size=400)
    assert again.get_vocab() == tiny_tokenizer.get_vocab()
