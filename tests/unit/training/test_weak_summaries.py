"""Reported speech made by rule: the person changes, the content stays."""

import random

import pytest

from training.data.sources import Turn
from training.data.weak_summaries import reported_summary, retelling, third_person, title

CASES = [
    ("I'd like to book a table for two.", "Anna would like to book a table for two."),
    ("Well, I need my car on Friday.", "Anna needs Anna's car on Friday."),
    ("Could you please send me the bill?", "Anna asks Ben to send Anna the bill."),
    ("Do you have any pets at home?", "Anna asks if Ben has any pets at home."),
    ("I can't find my old keys.", "Anna can't find Anna's old keys."),
    ("I carry it for you every day.", "Anna carries it for Ben every day."),
    ("I pay for your lunch today.", "Anna pays for Ben's lunch today."),
    ("What's your phone number again?", "Anna asks about Ben's phone number again."),
    ("It is raining in the north.", "Anna says it is raining in the north."),
    ("I personally find it sad.", "Anna personally finds it sad."),
    ("You have to see my house.", "Anna tells Ben that Ben has to see Anna's house."),
    ("You don't know the way there.", "Anna tells Ben that Ben doesn't know the way there."),
    ("You should try the soup there.", "Anna tells Ben that Ben should try the soup there."),
    ("What is the movie about?", "Anna asks about the movie."),
]


@pytest.mark.parametrize(("sentence", "report"), CASES)
def test_third_person_statement_or_question_is_reported(sentence, report):
    assert third_person(sentence, "Anna", "Ben") == report


@pytest.mark.parametrize("sentence", ["Yes.", "Okay, thanks!", "Why?", "Blue or green or red?"])
def test_third_person_small_talk_gives_none(sentence):
    assert third_person(sentence, "Anna", "Ben") is None


def test_reported_summary_names_speakers_and_drops_the_first_person():
    turns = [
        Turn("#Person1#", "Hi, I want to find a restaurant in Oakland."),
        Turn("#Person2#", "What kind of food do you like in your restaurant?"),
        Turn("#Person1#", "I like Thai food in Oakland."),
        Turn("#Person2#", "I found a Thai restaurant in Oakland called Bangkok Palace."),
    ]
    example = reported_summary(random.Random(3), turns)
    assert example is not None
    assert "#Person1#" in example.target
    assert not {"I", "my", "me"} & set(example.target.split())


def test_retelling_reports_all_that_a_rule_fits_in_order():
    turns = [
        Turn("#Person1#", "Hi! I want to find a restaurant in Oakland. I like Thai food."),
        Turn("#Person2#", "Blue or green? Can you wait a minute?"),
        Turn("#Person1#", "I can wait for you."),
    ]
    example = retelling(random.Random(3), turns)
    assert example is not None
    assert example.target == (
        "#Person1# wants to find a restaurant in Oakland and likes Thai food. "
        "#Person2# asks #Person1# to wait a minute. #Person1# can wait for #Person2#."
    )


def test_retelling_of_a_single_report_or_of_three_speakers_is_none():
    said = "I want to find a restaurant in Oakland."
    assert retelling(random.Random(3), [Turn("A", said), Turn("B", "Yes.")]) is None
    assert retelling(random.Random(3), [Turn(name, said) for name in "ABC"]) is None


def test_title_wish_becomes_a_short_title():
    turns = [Turn("A", "Hello there."), Turn("B", "I would like to rent a small car in Rome please.")]
    example = title(random.Random(0), turns)
    assert example is not None
    assert example.target == "rent a small car"
