"""Tasks whose answer must be copied out of the text: what a small model lacks first.

Every task takes a dialogue and returns an :class:`Example`, or None where the dialogue does not allow it. The answers
are exact, so a test can check them. It does not know tokenizers or models.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.data.dialogues import render
from training.data.sources import Turn

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]{3,}")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
_LONG_QUOTE_WORDS = 80
_NUMBER = re.compile(r"\$?\d+(?:[.,:-]\d+)*(?: ?(?:am|pm|%))?")


@dataclass(frozen=True)
class Example:
    """One training pair as text, with the name of the task it came from."""

    task: str
    source: str
    target: str


Task = Callable[[random.Random, Sequence[Turn]], Example | None]


def with_instruction(rng: random.Random, instruction: str, body: str, answer_cue: str = "Answer:") -> str:
    """Put an instruction before or after the text, with or without an answer cue.

    Raises:
        Nothing.
    """
    layout = rng.random()
    if layout < 0.5:
        return f"{instruction}\n\n{body}\n\n{answer_cue}"
    if layout < 0.75:
        return f"{instruction}\n\n{body}"
    return f"{body}\n\n{instruction}"


def quote_line(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Quote the only line that contains a given word.

    Raises:
        Nothing.
    """
    counts = Counter(word for turn in turns for word in set(_WORD.findall(turn.text)))
    index = rng.randrange(len(turns))
    words = [word for word in _WORD.findall(turns[index].text) if counts[word] == 1]
    if not words:
        return None
    wording = rng.choice(
        ('Quote the line that contains "{}".', 'Which line has the word "{}"?', 'Copy the line in which "{}" is said.')
    )
    instruction = wording.format(rng.choice(words))
    return Example("quote_line", with_instruction(rng, instruction, render(turns)), render([turns[index]]))


def neighbour_line(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Quote the line right after, or right before, a given one.

    Raises:
        Nothing.
    """
    index = rng.randrange(len(turns) - 1)
    first, second = render([turns[index]]), render([turns[index + 1]])
    if sum(render([turn]) in (first, second) for turn in turns) != 2:
        return None
    given, wanted, word = (first, second, "after") if rng.random() < 0.7 else (second, first, "before")
    instruction = rng.choice(("What line comes right {} this one: {}", "Copy the line directly {} this line: {}"))
    source = with_instruction(rng, instruction.format(word, given), render(turns))
    return Example("neighbour_line", source, wanted)


def finish_quote(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Finish an utterance of which the first words are given.

    Raises:
        Nothing.
    """
    turn = rng.choice(turns)
    words = turn.text.split(" ")
    if len(words) < 5:
        return None
    cut = rng.randint(2, min(4, len(words) - 2))
    instruction = rng.choice(("Finish the quote", "Complete what was said", "How does this line go on"))
    start = " ".join(words[:cut])
    if sum(other.text.startswith(start) for other in turns) != 1:
        return None
    source = with_instruction(rng, f'{instruction}: "{start}"', render(turns))
    return Example("finish_quote", source, " ".join(words[cut:]))


def restore_line(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Say which line a second copy of the dialogue lacks.

    Raises:
        Nothing.
    """
    if sum(len(turn.text) for turn in turns) > 600:
        return None
    index = rng.randrange(len(turns))
    shortened = [turn for place, turn in enumerate(turns) if place != index]
    source = f"Which line is missing in the copy?\n\n{render(turns)}\n\nCopy:\n{render(shortened)}"
    return Example("restore_line", source, render([turns[index]]))


def who_said(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Name the speaker of a quoted utterance.

    Raises:
        Nothing.
    """
    turn = rng.choice(turns)
    if sum(other.text == turn.text for other in turns) != 1:
        return None
    instruction = rng.choice(('Who said "{}"?', 'Name the speaker of "{}".')).format(turn.text)
    return Example("who_said", with_instruction(rng, instruction, render(turns)), turn.speaker)


def edge_line(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Quote the first or last line, of the whole dialogue or of one speaker.

    Raises:
        Nothing.
    """
    edge, place = rng.choice((("first", 0), ("last", -1)))
    if rng.random() < 0.4:
        instruction = rng.choice(("Copy the {} line.", "What is the {} line of the conversation?")).format(edge)
        return Example("edge_line", with_instruction(rng, instruction, render(turns)), render([turns[place]]))
    speaker = rng.choice([turn.speaker for turn in turns])
    instruction = rng.choice(("What is the {} thing {} says?", "Quote the {} utterance of {}.")).format(edge, speaker)
    said = [turn.text for turn in turns if turn.speaker == speaker]
    return Example("edge_line", with_instruction(rng, instruction, render(turns)), said[place])


def list_names(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """List the names (capitalised words inside sentences), in order of first mention.

    Raises:
        Nothing.
    """
    names = list(dict.fromkeys(name for turn in turns for name in _NAME.findall(turn.text)))
    if not names or len(names) > 12:
        return None
    instruction = rng.choice(("List the names that are mentioned.", "Which names occur in the conversation?"))
    return Example("list_names", with_instruction(rng, instruction, render(turns)), ", ".join(names))


def list_numbers(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """List the numbers, times and prices, in order of first mention.

    Raises:
        Nothing.
    """
    numbers = list(dict.fromkeys(number for turn in turns for number in _NUMBER.findall(turn.text)))
    if not numbers or len(numbers) > 12:
        return None
    instruction = rng.choice(("List the numbers that are mentioned.", "Which numbers, times or prices occur?"))
    return Example("list_numbers", with_instruction(rng, instruction, render(turns)), ", ".join(numbers))


def list_speakers(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """List the speakers in order of appearance.

    Raises:
        Nothing.
    """
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    return Example("list_speakers", with_instruction(rng, "Who takes part?", render(turns)), ", ".join(speakers))


def repeat_lines(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Repeat a few lines as they are, or in reverse order.

    Raises:
        Nothing.
    """
    start = rng.randrange(len(turns))
    lines = [render([turn]) for turn in turns[start : start + rng.randint(1, 3)]]
    if sum(map(len, lines)) > 220:
        return None
    if len(lines) > 1 and rng.random() < 0.5:
        return Example(
            "repeat_lines", "Write these lines in reverse order:\n" + "\n".join(lines), "\n".join(lines[::-1])
        )
    return Example("repeat_lines", rng.choice(("Repeat:\n", "Copy this text:\n")) + "\n".join(lines), "\n".join(lines))


def repeat_words(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Repeat words drawn at random from the dialogue: text that no language model could guess.

    Raises:
        Nothing.
    """
    words = [word for turn in turns for word in turn.text.split()]
    picked = " ".join(rng.sample(words, min(len(words), rng.randint(3, 20))))
    return Example("repeat_words", rng.choice(("Repeat: ", "Copy this text: ")) + picked, picked)


def long_quote(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Quote all that one speaker says, or all from a given line on: answers of up to `_LONG_QUOTE_WORDS` words.

    Raises:
        Nothing.
    """
    if rng.random() < 0.5:
        speaker = rng.choice([turn.speaker for turn in turns])
        lines = [turn.text for turn in turns if turn.speaker == speaker]
        instruction = rng.choice(("Quote everything {} says.", "Copy all the lines of {}.")).format(speaker)
    else:
        first = rng.randrange(len(turns))
        start = " ".join(render(turns[first : first + 1]).split(" ")[:5])
        if sum(render([turn]).startswith(start) for turn in turns) != 1:
            return None
        lines = render(turns[first:]).split("\n")
        wording = rng.choice(('Copy the conversation from "{}" on.', 'Quote all lines from "{}" to the end.'))
        instruction = wording.format(start)
    target = "\n".join(lines)
    if len(lines) < 2 or len(target.split()) > _LONG_QUOTE_WORDS:
        return None
    return Example("long_quote", with_instruction(rng, instruction, render(turns)), target)


COPY_TASKS: tuple[tuple[Task, float], ...] = (
    (quote_line, 5.0),
    (neighbour_line, 3.0),
    (finish_quote, 4.0),
    (restore_line, 1.0),
    (who_said, 2.0),
    (edge_line, 2.0),
    (list_names, 2.0),
    (list_numbers, 1.5),
    (list_speakers, 0.5),
    (repeat_lines, 2.0),
    (repeat_words, 2.0),
)


def draw_copy_task(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Draw one copy task by weight and build it.

    Raises:
        Nothing.
    """
    tasks, weights = zip(*COPY_TASKS, strict=True)
    return rng.choices(tasks, weights)[0](rng, turns)
