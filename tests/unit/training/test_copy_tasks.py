"""Copy tasks ask for what really stands in the text."""

import random

import pytest

from training.data import copy_tasks
from training.data.copy_tasks import COPY_TASKS
from training.data.dialogues import render
from training.data.sources import Turn, parse_turns

DIALOGUE = [
    Turn("#Person1#", "Good morning, I would like to book a table at Rosa Verde for Friday."),
    Turn("#Person2#", "Certainly. For how many people, and at what time?"),
    Turn("#Person1#", "There will be 4 of us, at 7:30 pm. My friend Martha needs a wheelchair."),
    Turn("#Person2#", "That is no problem. May I have your phone number?"),
    Turn("#Person1#", "It is 555-0199, and the bill should not exceed $120."),
    Turn("#Person2#", "Thank you. See you on Friday then."),
]
TEXT = render(DIALOGUE)


def _draws(task, count=60):
    drawn = [task(random.Random(seed), DIALOGUE) for seed in range(count)]
    found = [example for example in drawn if example is not None]
    assert found, "the task never fits this dialogue"
    return found


@pytest.mark.parametrize("task", [task for task, _ in COPY_TASKS], ids=lambda task: task.__name__)
def test_copy_task_answer_words_all_stand_in_the_dialogue(task):
    for example in _draws(task):
        for word in example.target.replace(",", " ").split():
            assert word in TEXT.replace(",", " ")
        assert example.target


def test_quote_line_answer_is_the_line_with_the_word():
    for example in _draws(copy_tasks.quote_line):
        word = example.source.split('"')[1]
        assert [line for line in TEXT.split("\n") if word in line] == [example.target]


def test_neighbour_line_answer_is_next_to_the_given_line():
    lines = TEXT.split("\n")
    for example in _draws(copy_tasks.neighbour_line):
        place = lines.index(example.target)
        given = [i for i in (place - 1, place + 1) if 0 <= i < len(lines) and example.source.count(lines[i]) == 2]
        step = 1 if " after " in example.source.replace(TEXT, "") else -1
        assert place - step in given


def test_restore_line_answer_completes_the_copy():
    for example in _draws(copy_tasks.restore_line):
        copy = example.source.split("Copy:\n")[1].split("\n")
        assert sorted([*copy, example.target]) == sorted(TEXT.split("\n"))


def test_who_said_answer_is_the_speaker():
    for example in _draws(copy_tasks.who_said):
        quote = next(turn for turn in DIALOGUE if f'"{turn.text}"' in example.source)
        assert example.target == quote.speaker


def test_finish_quote_start_and_answer_make_an_utterance():
    for example in _draws(copy_tasks.finish_quote):
        starts = example.source.replace(TEXT, "").split('"')[1]
        assert f"{starts} {example.target}" in [turn.text for turn in DIALOGUE]


def test_list_names_and_numbers_keep_the_order_of_mention():
    assert _draws(copy_tasks.list_names)[0].target == "Rosa Verde, Friday, Martha"
    assert _draws(copy_tasks.list_numbers)[0].target == "4, 7:30 pm, 555-0199, $120"


def test_parse_turns_rendered_dialogue_comes_back():
    assert parse_turns(TEXT) == DIALOGUE


def test_long_quote_answer_is_a_speakers_lines_or_the_rest_of_the_text():
    by_speaker = {"\n".join(turn.text for turn in DIALOGUE if turn.speaker == f"#Person{n}#") for n in (1, 2)}
    answers = {example.target for example in _draws(copy_tasks.long_quote)}
    endings = answers - by_speaker
    assert by_speaker & answers
    assert endings
    assert all(TEXT.endswith("\n" + ending) or ending == TEXT for ending in endings)
    assert all("\n" in answer for answer in answers)
