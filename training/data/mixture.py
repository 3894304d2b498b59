"""Draw training pairs from the whole mixture, shard by shard, reproducibly.

A shard is a function of (seed, shard number) alone, so a resumed run sees the same data as an unbroken one. It knows
text and tasks, and the tokenizer only to cut span-corruption chunks; it does not know models.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training.data import copy_tasks, weak_summaries
from training.data.copy_tasks import Example, with_instruction
from training.data.dialogues import rename_speakers, render, window
from training.data.sources import (
    SummaryRecord,
    Turn,
    parse_turns,
    read_dialogues,
    read_paragraphs,
    read_summaries,
    read_task,
)
from training.data.splits import is_held_out

HELD_OUT_PERCENT = 1.0
MIN_CRD3_SCORE = 0.3
_DIALOGUE_SHARES = {"sgd": 0.36, "self_dialogue": 0.36, "crd3": 0.22, "taskmaster4": 0.06}
_NOTE_WORDINGS = ("Write the {} section of the clinical note.", "Write a clinical note ({}).")
_CUES = ("Summary:", "Summary:", "Answer:")


@dataclass(frozen=True)
class Corpora:
    """Everything the mixture draws from, held-out dialogues already removed (or alone, for evaluation)."""

    dialogues: dict[str, list[list[Turn]]]
    paragraphs: list[str]
    summaries: dict[str, list[SummaryRecord]]
    tasks: dict[str, list[dict[str, str]]]


def load_corpora(data_dir: Path, held_out: bool = False, num_paragraphs: int = 40_000) -> Corpora:
    """Read the commercially usable corpora: everything but DialogSum.

    Args:
        data_dir: folder of the corpora.
        held_out: give the held-out dialogues, and the summaries of the validation splits, instead of the training ones.
        num_paragraphs: how many book paragraphs to keep, spread evenly over the file.

    Raises:
        TrainingDataError: a file is missing.
    """
    dialogues = {
        name: [
            turns
            for turns in read_dialogues(data_dir, name)
            if is_held_out(render(turns), HELD_OUT_PERCENT) == held_out
        ]
        for name in _DIALOGUE_SHARES
    }
    paragraphs = read_paragraphs(data_dir)
    splits = ("val", "validation") if held_out else ("train",)
    summaries = {
        name: [record for record in read_summaries(data_dir, name) if record.split in splits]
        for name in ("crd3", "tweetsumm", "mts_dialog")
    }
    summaries["crd3"] = [record for record in summaries["crd3"] if (record.score or 0.0) >= MIN_CRD3_SCORE]
    tasks = {name: read_task(data_dir, name, "train") for name in ("banking77", "sentence_polarity", "english_french")}
    return Corpora(dialogues, paragraphs[:: max(1, len(paragraphs) // num_paragraphs)], summaries, tasks)


class Mixture:
    """Draws examples by weight. Not safe to share between threads: each draw takes its own random generator."""

    def __init__(self, corpora: Corpora, weights: dict[str, float], max_words: int = 250) -> None:
        """Hold the corpora and the weight of each kind of example.

        Raises:
            KeyError: `weights` names an unknown kind.
        """
        makers: dict[str, Callable[[random.Random], Example | None]] = {
            "copy": lambda rng: copy_tasks.draw_copy_task(rng, self._dialogue(rng)),
            "long_quote": lambda rng: copy_tasks.long_quote(rng, self._dialogue(rng)),
            "retelling": lambda rng: weak_summaries.retelling(rng, self._two_party(rng)),
            "reported_summary": lambda rng: weak_summaries.reported_summary(rng, self._two_party(rng)),
            "key_lines": lambda rng: weak_summaries.key_lines(rng, self._dialogue(rng)),
            "gap_lines": lambda rng: weak_summaries.gap_lines(rng, self._dialogue(rng)),
            "title": lambda rng: weak_summaries.title(rng, self._two_party(rng)),
            "crd3_summary": self._crd3_summary,
            "tweetsumm": self._tweetsumm,
            "clinic_note": self._clinic_note,
            "banking77": self._banking,
            "polarity": self._polarity,
            "translation": self._translation,
        }
        self._makers = {kind: makers[kind] for kind in weights}
        self._weights = list(weights.values())
        self._corpora = corpora
        self._max_words = max_words

    def draw(self, rng: random.Random) -> Example:
        """Return the next example; a dialogue that does not suit the drawn task is replaced by another draw.

        Raises:
            Nothing.
        """
        while True:
            kind = rng.choices(list(self._makers), self._weights)[0]
            example = self._makers[kind](rng)
            if example is not None and example.target.strip():
                return example

    def passage(self, rng: random.Random, book_share: float = 0.25) -> str:
        """Return running text for span corruption: a rendered dialogue, or a book paragraph.

        Raises:
            Nothing.
        """
        if rng.random() < book_share:
            return rng.choice(self._corpora.paragraphs)
        turns = self._raw(rng)
        return render(window(rng, rename_speakers(rng, turns), 350))

    def _raw(self, rng: random.Random, without: str = "") -> list[Turn]:
        shares = {name: share for name, share in _DIALOGUE_SHARES.items() if name != without}
        name = rng.choices(list(shares), list(shares.values()))[0]
        return rng.choice(self._corpora.dialogues[name])

    def _dialogue(self, rng: random.Random) -> list[Turn]:
        words = rng.choice((40, 70, 100, 130, 160, self._max_words))
        while True:
            turns = rename_speakers(rng, window(rng, self._raw(rng), words))
            if len(turns) >= 2:
                return turns

    def _two_party(self, rng: random.Random) -> list[Turn]:
        words = rng.choice((60, 100, 130, 160, 200, self._max_words))
        turns = self._raw(rng, without="crd3")
        return rename_speakers(rng, window(rng, turns, words, min_turns=6), person_share=0.7)

    def _crd3_summary(self, rng: random.Random) -> Example | None:
        record = rng.choice(self._corpora.summaries["crd3"])
        turns = parse_turns(record.dialogue)
        if not turns or len(record.dialogue.split()) > 300:
            return None
        body = record.dialogue
        if rng.random() < 0.3 and len({turn.speaker for turn in turns}) > 1:
            body = render(rename_speakers(rng, turns, person_share=0.0))
        source = with_instruction(rng, rng.choice(weak_summaries.SUMMARY_WORDINGS), body, rng.choice(_CUES))
        return Example("crd3_summary", source, record.summaries[0])

    def _tweetsumm(self, rng: random.Random) -> Example | None:
        record = rng.choice(self._corpora.summaries["tweetsumm"])
        source = with_instruction(rng, rng.choice(weak_summaries.SUMMARY_WORDINGS), record.dialogue, rng.choice(_CUES))
        return Example("tweetsumm", source, rng.choice(record.summaries))

    def _clinic_note(self, rng: random.Random) -> Example | None:
        record = rng.choice(self._corpora.summaries["mts_dialog"])
        if rng.random() < 0.25:
            return Example(
                "clinic_header", with_instruction(rng, "Name the topic.", record.dialogue, "Topic:"), record.topics[0]
            )
        instruction = (
            rng.choice(_NOTE_WORDINGS).format(record.topics[0]) if rng.random() < 0.5 else "Write a clinical note."
        )
        return Example("clinic_note", with_instruction(rng, instruction, record.dialogue, "Note:"), record.summaries[0])

    def _banking(self, rng: random.Random) -> Example | None:
        row = rng.choice(self._corpora.tasks["banking77"])
        instruction = rng.choice(("What does the customer want?", "Name the customer's intent."))
        return Example("banking77", with_instruction(rng, instruction, row["text"]), row["label"].replace("_", " "))

    def _polarity(self, rng: random.Random) -> Example | None:
        row = rng.choice(self._corpora.tasks["sentence_polarity"])
        instruction = rng.choice(("Is this review positive or negative?", "Positive or negative?"))
        return Example("polarity", with_instruction(rng, instruction, row["text"]), row["label"])

    def _translation(self, rng: random.Random) -> Example | None:
        row = rng.choice(self._corpora.tasks["english_french"])
        if rng.random() < 0.5:
            return Example("translation", f"Translate English to French: {row['source']}", row["target"])
        return Example("translation", f"Translate French to English: {row['target']}", row["source"])


def tokenizer_texts(corpora: Corpora, seed: int, num_passages: int = 60_000) -> list[str]:
    """Return the texts the tokenizer is trained on: passages as the mixture renders them, tasks and summaries.

    Raises:
        Nothing.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    mixture = Mixture(corpora, {"copy": 1.0})
    texts = [mixture.passage(rng) for _ in range(num_passages)]
    for records in corpora.summaries.values():
        texts += [record.dialogue for record in records] + [text for record in records for text in record.summaries]
    for rows in corpora.tasks.values():
        texts += [row.get("text") or f"{row['source']}\n{row['target']}" for row in rows]
    return texts


def span_chunk(rng: random.Random, tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return a run of token ids of `text`, its length drawn so that the pair fits one of the batch shapes.

    Raises:
        Nothing.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    length = rng.choices((130, 260, 500), (0.4, 0.45, 0.15))[0]
    start = rng.randrange(max(1, len(ids) - length))
    return ids[start : start + length]
