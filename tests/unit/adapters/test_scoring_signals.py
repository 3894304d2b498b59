import pytest

from adapters.scoring.signals import MAX_SOURCE_CHARS, unscored_signals


def test_answer_that_copies_its_source_shows_it() -> None:
    source = "we meet on friday in the small room at noon"
    signals = unscored_signals("We meet on Friday in the small room.", source)
    assert signals == {"repetition": 0.0, "copy_rate": 100.0, "length_ratio": pytest.approx(0.8)}


def test_answer_that_says_things_again_shows_it() -> None:
    assert unscored_signals("no no no no no no", "yes")["repetition"] == pytest.approx(75.0)


def test_signals_count_words_of_every_script() -> None:
    assert unscored_signals("привет мир снова", "привет мир снова и снова")["copy_rate"] == 100.0


def test_signals_that_need_a_source_are_left_out_without_one() -> None:
    assert set(unscored_signals("one two three", "")) == {"repetition"}
    assert unscored_signals("", "source") == {}
    assert unscored_signals("!?", "source") == {}


def test_only_the_beginning_of_a_very_long_source_is_looked_at() -> None:
    long = "word " * MAX_SOURCE_CHARS
    assert unscored_signals("word", long)["length_ratio"] == pytest.approx(1 / (MAX_SOURCE_CHARS / 5))
