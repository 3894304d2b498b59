"""Detokenizing and stop strings: the pieces must add up to the whole, however they are cut."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.core.errors import FailedPreconditionError
from server.service.text import Detokenizer, StopStrings, TextStream
from server.service.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "#Person1#: Did you book it? 20%",
    "naïve café über",
    "你好 👋🏽",
]


def byte_level_bpe() -> RustTokenizer:
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def unigram_metaspace() -> RustTokenizer:
    """As T5's, with bytes for what the vocabulary lacks."""
    pieces = [(f"▁{word}", -3.0) for word in ("the", "quick", "fox", "a", "book")]
    pieces += [(character, -6.0) for character in "▁abcdefghijklmnopqrstuvwxyz"]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    tokenizer = RustTokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace("\t", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def unigram_as_llama() -> RustTokenizer:
    """As Llama 2's: a space before every text, and what is decoded loses its first one."""
    tokenizer = unigram_metaspace()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.fixture(
    scope="module",
    params=[byte_level_bpe, unigram_metaspace, unigram_as_llama, ByteTokenizer],
    ids=lambda kind: kind.__name__,
)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = request.param()
    if isinstance(made, ByteTokenizer):
        return made
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return FileTokenizer(path)


def streamed(tokenizer: Tokenizer, token_ids: list[int], num_per_step: int = 1) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    steps = [token_ids[at : at + num_per_step] for at in range(0, len(token_ids), num_per_step)]
    return [detokenizer.feed(step) for step in steps] + [detokenizer.finish()]


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40), step=st.integers(1, 4))
@example(text="你好 👋🏽 the fox", step=1)
@example(text="  two  spaces ", step=1)
def test_detokenizer_pieces_add_up_to_the_whole_text(tokenizer: Tokenizer, text: str, step: int) -> None:
    token_ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, token_ids, step)) == tokenizer.decode(token_ids)


def test_detokenizer_never_splits_a_character(tokenizer: Tokenizer) -> None:
    pieces = streamed(tokenizer, tokenizer.encode("你好👋🏽é"))
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "你好👋🏽é"


def test_detokenizer_skips_special_tokens_and_keeps_spaces_around_them(tokenizer: Tokenizer) -> None:
    quick, fox = tokenizer.encode("the quick")[:-1], tokenizer.encode("the quick fox")
    assert "".join(streamed(tokenizer, [*quick, 0, 1, *fox[len(quick) :]])) == "the quick fox"


def test_detokenizer_gives_broken_bytes_at_the_end() -> None:
    assert streamed(ByteTokenizer(), [0xE4 + 3, 0xBD + 3]) == ["", "", "\ufffd"]


def test_detokenizer_time_grows_with_the_number_of_tokens_only(tokenizer: Tokenizer) -> None:
    def seconds(num_times: int) -> float:
        token_ids = tokenizer.encode("the quick fox " * num_times)
        start_s = time.perf_counter()
        streamed(tokenizer, token_ids)
        return (time.perf_counter() - start_s) / len(token_ids)

    seconds(50)
    # Decoding the whole answer at each token would make this about 40.
    assert min(seconds(2000) for _ in range(3)) < 8 * min(seconds(50) for _ in range(3))


def continued(tokenizer: Tokenizer, token_ids: list[int], num_before: int, num_per_step: int = 1) -> str:
    detokenizer = Detokenizer(tokenizer, token_ids[:num_before])
    rest = token_ids[num_before:]
    steps = [rest[at : at + num_per_step] for at in range(0, len(rest), num_per_step)]
    return "".join(detokenizer.feed(step) for step in steps) + detokenizer.finish()


@settings(deadline=None)
@given(text=st.text("the fox é你👋", min_size=1, max_size=40), data=st.data())
def test_detokenizer_goes_on_where_the_tokens_before_end(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    num_before = data.draw(st.integers(1, len(token_ids)))
    whole = tokenizer.decode(token_ids)
    # A character that the tokens before end within is not theirs. Some decoders spoil the ones before it, too.
    befores = [tokenizer.decode(token_ids[:count]).rstrip("\ufffd") for count in range(num_before + 1)]
    before = max((each for each in befores if whole.startswith(each)), key=len)
    assert before + continued(tokenizer, token_ids, num_before, data.draw(st.integers(1, 9))) == whole


@pytest.mark.parametrize("text", ["tfhf👋👋👋", "eeéé你你", "👋", "é   x你 👋👋👋 fox"])
def test_detokenizer_gives_all_text_from_wherever_it_goes_on(tokenizer: Tokenizer, text: str) -> None:
    """Also where tokens hold the end of one character and the beginning of the next."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(token_ids)
    for num_before in range(len(token_ids)):
        for num_per_step in (1, 2, 5):
            found = continued(tokenizer, token_ids, num_before, num_per_step)
            assert whole.endswith(found), num_before
            # Of the characters that the tokens behind have a part in, none is missing.
            assert len(found) >= len(tokenizer.decode(token_ids[num_before:]).strip("\ufffd ")), num_before


def test_detokenizer_keeps_the_space_between_prompt_and_answer(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("the quick fox", add_special_tokens=False)
    num_before = len(tokenizer.encode("the quick", add_special_tokens=False))
    assert continued(tokenizer, token_ids, num_before) == " fox"
    assert (
        continued(tokenizer, [*token_ids[:num_before], *[1] * 40, *token_ids[num_before:]], num_before + 40) == " fox"
    )


def test_detokenizer_does_not_repeat_a_broken_character_that_was_written_so(tokenizer: Tokenizer) -> None:
    if isinstance(tokenizer, ByteTokenizer):
        token_ids = tokenizer.encode("so \ufffdx", add_special_tokens=False)
        assert continued(tokenizer, token_ids, len(token_ids) - 1) == "x"


def test_detokenizer_holds_back_few_tokens_of_broken_text(tokenizer: Tokenizer) -> None:
    [lead] = [each for each in range(300) if tokenizer.piece(each) == "\ufffd"][-1:]
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(detokenizer.feed([lead]) for _ in range(100))
    assert len(shown) > 80
    assert len(shown + detokenizer.finish()) == 100
    assert len(detokenizer._fresh) <= 20


def test_detokenizer_time_of_tokens_without_text_does_not_grow(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    detokenizer.feed(tokenizer.encode("the", add_special_tokens=False))
    for _ in range(1000):
        assert detokenizer.feed([1]) == ""
    assert len(detokenizer._fresh) == 0


def test_piece_of_a_special_token_is_its_name(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token_id) for token_id in range(3)] == ["<pad>", "</s>", "<unk>"]


def test_encode_without_special_tokens_leaves_out_the_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the fox") == [*tokenizer.encode("the fox", add_special_tokens=False), 1]


def test_decode_with_special_tokens_names_them(tokenizer: Tokenizer) -> None:
    decoded = tokenizer.decode(tokenizer.encode("the fox"), skip_special_tokens=False)
    assert decoded.replace(" ", "") == "thefox</s>"


def test_piece_keeps_the_space_before_a_word(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("the quick fox")[:-1]
    assert "".join(tokenizer.piece(token_id) for token_id in token_ids).strip() == "the quick fox"


def test_file_tokenizer_refuses_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json"):
        FileTokenizer(tmp_path / "tokenizer.json")


def cut(text: str, stops: tuple[str, ...]) -> str:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        return text
    end = min(ends)
    return text[: end - max(len(stop) for stop in stops if text[:end].endswith(stop))]


@settings(deadline=None)
@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
@example(text="aaab", stops=("aab",), sizes=[1])
@example(text="abab", stops=("abc", "ba"), sizes=[2])
def test_stop_strings_cut_the_same_text_however_it_is_split(
    text: str, stops: tuple[str, ...], sizes: list[int]
) -> None:
    matcher = StopStrings(stops)
    shown, position = "", 0
    while position < len(text):
        size = sizes[position % len(sizes)]
        shown += matcher.feed(text[position : position + size])
        assert cut(text, stops).startswith(shown)
        position += size
    assert shown + matcher.finish() == cut(text, stops)
    assert matcher.found == any(stop in text for stop in stops)


def test_stop_string_across_a_chunk_border_is_found_and_held_back() -> None:
    matcher = StopStrings(["\n\nEnd"])
    assert [matcher.feed(piece) for piece in ("so it is\n", "\nE", "nd and more")] == ["so it is", "", ""]
    assert matcher.found


def test_stop_strings_hold_back_no_longer_than_needed() -> None:
    matcher = StopStrings(["abc"])
    assert [matcher.feed(piece) for piece in ("xa", "b", "d", "a")] == ["x", "", "abd", ""]
    assert matcher.finish() == "a"


@pytest.mark.parametrize("step", [1, 2, 5])
def test_stop_string_within_the_least_tokens_does_not_end_the_text(step: int) -> None:
    stream = TextStream(ByteTokenizer(), ["ab"], min_new_tokens=4)
    token_ids = ByteTokenizer().encode("xabab-ab", add_special_tokens=False)
    shown = "".join(stream.feed(token_ids[at : at + step]) for at in range(0, len(token_ids), step))
    assert (shown + stream.finish(), stream.stopped) == ("xab", True)


def test_text_stream_finds_a_stop_string_in_what_the_detokenizer_held_back() -> None:
    stream = TextStream(ByteTokenizer(), ["\ufffd"])
    shown = stream.feed([ord("a") + 3]) + stream.feed([0xE4 + 3])
    assert shown + stream.finish() == "a"
    assert stream.stopped
