"""Cases as token ids: long ones are cut, and nothing is lost."""

import pytest

from training.data.adaptation import Case, pairs_by_task, training_pairs

pytestmark = pytest.mark.torch


def test_training_pairs_long_texts_are_cut_not_dropped(tiny_tokenizer):
    pairs = training_pairs([Case("", "a " * 600, ("b c " * 300,)), Case("", "a", ("b",))], tiny_tokenizer)
    assert [len(pairs[0].source), len(pairs[0].target)] == [512, 192]
    assert pairs[0].source[-1] == tiny_tokenizer.eos_token_id
    assert pairs[0].target[-1] != tiny_tokenizer.eos_token_id
    assert pairs[1].target[-1] == tiny_tokenizer.eos_token_id


def test_training_pairs_several_references_give_one_pair_each(tiny_tokenizer):
    pairs = training_pairs([Case("", "a", ("b", "c"))], tiny_tokenizer)
    assert len(pairs) == 2
    assert pairs[0].source == pairs[1].source
    assert training_pairs([], tiny_tokenizer) == []


def test_pairs_by_task_keeps_the_pairs_of_a_case_together(tiny_tokenizer):
    cases = [Case("", "a", ("b", "c"), task="x"), Case("", "d", ("e",), task="y"), Case("", "f", ("g",), task="x")]
    grouped = pairs_by_task(cases, training_pairs(cases, tiny_tokenizer))
    assert [len(pairs) for pairs in grouped["x"]] == [2, 1]
    assert [pair for case in grouped["y"] for pair in case] == training_pairs(cases[1:2], tiny_tokenizer)
