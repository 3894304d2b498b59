"""Splits: the held-out part depends on the text alone, and never overlaps what is learned."""

import pytest

from training.data.sources import is_held_out, read_summaries
from training.errors import TrainingConfigError, TrainingDataError

pytestmark = pytest.mark.torch
TEMPLATE = "Sum up.\n\n{{ text }}"


def _splits(data, folder):
    from training.data.adaptation import load_splits

    return load_splits(data, TEMPLATE, folder)


def test_load_splits_twice_gives_the_same_parts_without_overlap(tiny_data):
    from training.config import AdapterData

    data = AdapterData("dialogsum", held_out_percent=40.0)
    first, again = _splits(data, tiny_data), _splits(data, tiny_data)
    assert first == again
    assert first.train
    assert first.held_out
    assert not {case.dialogue for case in first.train} & {case.dialogue for case in first.held_out}
    assert len(first.train) + len(first.held_out) == 12
    assert len(first.validation) == 2


def test_load_splits_topic_target_takes_topics_and_renders_the_template(tiny_data):
    from training.config import AdapterData

    case = _splits(AdapterData("dialogsum", target="topic", held_out_percent=40.0), tiny_data).validation[0]
    assert case.references == ("tickets",)
    assert case.prompt == f"Sum up.\n\n{case.dialogue}"


def test_load_splits_unknown_target_is_refused(tiny_data):
    from training.config import AdapterData

    with pytest.raises(TrainingConfigError, match="target"):
        _splits(AdapterData("dialogsum", target="mood", held_out_percent=40.0), tiny_data)


def test_load_splits_nothing_held_out_is_refused(tiny_data):
    from training.config import AdapterData

    with pytest.raises(TrainingDataError, match="too small"):
        _splits(AdapterData("dialogsum", held_out_percent=0.0), tiny_data)


def test_training_pairs_long_texts_are_cut_not_dropped(tiny_tokenizer):
    from training.data.adaptation import Case, training_pairs

    pairs = training_pairs([Case("", "a " * 600, ("b c " * 300,)), Case("", "a", ("b",))], tiny_tokenizer)
    assert [len(pairs[0].source), len(pairs[0].target)] == [512, 192]
    assert pairs[0].source[-1] == tiny_tokenizer.eos_token_id
    assert pairs[0].target[-1] != tiny_tokenizer.eos_token_id
    assert pairs[1].target[-1] == tiny_tokenizer.eos_token_id


def test_read_summaries_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingDataError, match="crd3"):
        read_summaries(tmp_path, "crd3")


def test_is_held_out_share_is_about_the_wanted_one():
    share = sum(is_held_out(f"text {n}", 10.0) for n in range(5000)) / 5000
    assert 0.08 < share < 0.12
