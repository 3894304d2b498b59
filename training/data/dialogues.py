"""Render turns as dialogue text under many speaker namings, and cut windows of a wanted length.

A good share is written `#Person1#: …` so that a later adapter need only learn a summary's style. No tokenizer, no task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.data.sources import Turn

_NAMES = (
    "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nick Olivia Paul Rachel Sam Tina Victor "
    "Wendy Alex Bob Cathy Daniel Ella Fred Gina Harry Ivy James Karen Lily Mark Nancy Oscar Peter Rose Steven Tom "
    "Vivian Will Amy Brian Claire Dan Eva George Helen Ian Julia Kevin Linda Mike Nora Sarah Tony Jane John Mary Lucy "
    "Susan Mr.Smith Mrs.Brown Miss.White Francis Monica Judy Charles Jim Jimmy Alice Sophie Lisa Ted Rob Adam Simon "
    "Laura Jenny"
)
FIRST_NAMES = tuple(_NAMES.split())
ROLE_PAIRS = (
    ("Customer", "Agent"), ("Doctor", "Patient"), ("A", "B"), ("User", "Assistant"), ("Client", "Advisor"),
    ("Agent", "Customer"), ("Patient", "Doctor"), ("Man", "Woman"), ("Woman", "Man"), ("M", "W"),
)  # fmt: skip


def rename_speakers(rng: random.Random, turns: Sequence[Turn], person_share: float = 0.6) -> list[Turn]:
    """Give the speakers new names: `#Person1#` style (`person_share`), their own, first names, or a pair of roles.

    Raises:
        Nothing.
    """
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    draw = rng.random()
    if draw < person_share:
        names = [f"#Person{i + 1}#" for i in range(len(speakers))]
    elif draw < person_share + (1 - person_share) * 0.3:
        names = speakers
    elif draw < person_share + (1 - person_share) * 0.7 or len(speakers) != 2:
        names = rng.sample(FIRST_NAMES, len(speakers)) if len(speakers) <= len(FIRST_NAMES) else speakers
    else:
        names = list(rng.choice(ROLE_PAIRS))
    mapping = dict(zip(speakers, names, strict=True))
    return [Turn(mapping[turn.speaker], turn.text) for turn in turns]


def window(rng: random.Random, turns: Sequence[Turn], max_words: int, min_turns: int = 3) -> list[Turn]:
    """Return consecutive turns of at most about `max_words` words, often from the dialogue's beginning.

    Raises:
        Nothing. A single overlong turn is cut at a word boundary.
    """
    start = 0 if rng.random() < 0.5 else rng.randrange(max(1, len(turns) - min_turns))
    picked: list[Turn] = []
    words = 0
    for turn in turns[start:]:
        pieces = turn.text.split()
        if picked and words + len(pieces) > max_words:
            break
        text = turn.text if len(pieces) <= max_words else " ".join(pieces[:max_words])
        picked.append(Turn(turn.speaker, text))
        words += len(pieces) + 1
    return picked


def render(turns: Sequence[Turn]) -> str:
    """Return the turns as `speaker: text` lines.

    Raises:
        Nothing.
    """
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns)
