"""FLAN's ways to put a task, and the answer back out of a text."""

import pytest

from training.data.instructions import extract_answer, with_options, with_rationale, with_shots

CHOICES = ("positive", "negative", "not sure")


def test_with_options_lists_them_below_the_task():
    assert with_options("Good or bad?", ["good", "bad"]) == "Good or bad?\n\nOPTIONS:\n- good\n- bad"


def test_with_shots_puts_worked_examples_before_the_task():
    assert with_shots("3 + 3 =", [("1 + 1 =", "2"), ("2 + 2 =", "4")]) == "1 + 1 =\n2\n\n2 + 2 =\n4\n\n3 + 3 ="


@pytest.mark.parametrize("answer", ["7", "7.", "The Hague", "3.5 km"])
def test_extract_answer_of_a_chain_of_thought_target_gives_the_answer_back(answer):
    target = with_rationale("It was 3, and then the answer is not yet known. So 4 more.", answer)
    assert target.endswith(f"So the answer is {answer.removesuffix('.')}.")
    assert extract_answer(target) == answer.removesuffix(".")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Negative.", "negative"),
        ("Both are fine. So the answer is: Not sure!", "not sure"),
        ("I would say it is positive", "positive"),
        ("positive or negative", "positive or negative"),
        ("unpositive", "unpositive"),
        ("", ""),
    ],
)
def test_extract_answer_with_choices_gives_the_one_that_is_meant(text, expected):
    assert extract_answer(text, CHOICES) == expected
