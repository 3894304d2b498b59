"""Summaries made by rule from bare dialogues: reported speech, key lines and titles.

The salient sentences of a dialogue are rewritten in the third person ("I'd like to book a table." becomes
"#Person1# would like to book a table."), so that a model learns selection and the switch of person from data that may
be used commercially. It does not know tokenizers or models.

Source of choosing the sentences that best stand for the rest: Zhang et al. 2020 (PEGASUS), arXiv:1912.08777, 3.1.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from training.data.copy_tasks import Example, with_instruction
from training.data.dialogues import render
from training.data.sources import Turn

SUMMARY_WORDINGS = (
    "Summarize the following conversation.",
    "Summarize the following conversation.",
    "Summarize this dialogue.",
    "Write a short summary of the conversation.",
    "What is the conversation about? Summarize it briefly.",
    "Give a summary of what was said.",
    "Sum up the dialogue in one or two sentences.",
)
RETELLING_WORDINGS = (
    "Report everything that is said, in the third person.",
    "Retell the conversation in full.",
    "Turn the dialogue into reported speech.",
)
TITLE_WORDINGS = ("What is the topic of the conversation?", "Give the conversation a short title.", "Name the topic.")
_REPORT_WORDS = 25
_RETELLING_WORDS = 80
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_OPENER = re.compile(
    r"^(?:(?:oh|ok|okay|yes|yeah|yep|no|nope|well|so|and|but|hi|hello|hey|sure|alright|right|great|thanks|thank you|"
    r"actually|please|then|also|because|cool|nice|good|perfect|awesome|um|uh|ah|hmm|haha|wow|sorry|i think|i guess|"
    r"i mean|i believe|you know|like|anyway)\b[,.!\s]*)+",
    re.I,
)
_STOP_WORDS = (
    "the a an and or but of to in on at for with is are was were be been it this that i you he she they we me my "
    "your his her their our do does did have has had will would can could should not no yes so if what which who "
    "how when where there here just like about from as by up out then than too very really know think get got go"
)
_STOP = frozenset(_STOP_WORDS.split())
_IRREGULAR = {"have": "has", "do": "does", "go": "goes", "am": "is", "are": "is", "were": "was"}
_UNCHANGED_VERBS = (
    "was had did will would can could should might may must never always also just really still only already saw "
    "went got made said told thought knew heard found came took gave left lost bought felt met read put grew became "
    "began ran won spent kept used"
)
_UNCHANGED = frozenset(_UNCHANGED_VERBS.split())
_PLEASE = re.compile(r",? please\b", re.I)
_SUBJECT = re.compile(r"^(?:I|we)\b", re.I)
_TITLE = re.compile(
    r"\b(?:want|need|like|love|looking|trying|wish|plan|planning|hope) to "
    r"((?!(?:do|be|go|see|know|say|get)\b)\w+(?: [\w']+){1,4})",
    re.I,
)


def third_person(sentence: str, speaker: str, other: str) -> str | None:
    """Turn a first-person statement or a simple question into a report about `speaker`; None where no rule fits.

    Raises:
        Nothing.
    """
    text = _OPENER.sub("", _PLEASE.sub("", sentence.strip()))
    if len(text.split()) < 4:
        return None
    if text.endswith("?"):
        return _report_question(text.rstrip("?! "), speaker, other)
    text = text.rstrip(".! ")
    if _SUBJECT.match(text):
        rest = re.sub(r"^\w+", "", text, count=1)
        predicate = _conjugate(rest)
        return None if predicate is None else f"{speaker} {_swap_pronouns(predicate, speaker, other)}."
    if re.match(r"^you [a-z']+ ", text, re.I):
        predicate = _conjugate(text[len("you") :])
        return predicate and f"{speaker} tells {other} that {other} {_swap_pronouns(predicate, speaker, other)}."
    if re.match(r"^(?:you|your)\b", text, re.I):
        return f"{speaker} tells {other} that {_swap_pronouns(text[0].lower() + text[1:], speaker, other)}."
    if re.match(r"^(?:it|there|the|this|that|he|she|they|my)\b", text, re.I):
        return f"{speaker} says {_swap_pronouns(text[0].lower() + text[1:], speaker, other)}."
    return None


def _report_question(text: str, speaker: str, other: str) -> str | None:
    match = re.match(r"^(?:can|could|would|will) you (?:please )?(.+)$", text, re.I)
    if match:
        return f"{speaker} asks {other} to {_swap_pronouns(match.group(1), speaker, other)}."
    match = re.match(r"^(?:can|could|may) I (.+)$", text, re.I)
    if match:
        return f"{speaker} asks to {_swap_pronouns(match.group(1), speaker, other)}."
    match = re.match(r"^do you (.+)$", text, re.I)
    if match:
        predicate = _conjugate(" " + match.group(1))
        return predicate and f"{speaker} asks if {other} {_swap_pronouns(predicate, speaker, other)}."
    match = re.match(r"^(have|are|did|were|will|would) you (.+)$", text, re.I)
    if match:
        verb = _IRREGULAR.get(match.group(1).lower(), match.group(1).lower())
        return f"{speaker} asks if {other} {verb} {_swap_pronouns(match.group(2), speaker, other)}."
    match = re.match(r"^(?:what|who)(?:'s| is| are) (your|the) (.+?)(?: about)?$", text, re.I)
    if match:
        return f"{speaker} asks about {_swap_pronouns(match.group(1).lower() + ' ' + match.group(2), speaker, other)}."
    return None


def _conjugate(rest: str) -> str | None:
    """Put what follows `I` into the third person: " 'd like" gives "would like", " want" gives "wants"."""
    contraction = re.match(r"^('m|'d like|'d love|'d|'ve|'ll)\b\s*(.*)$", rest, re.I)
    if contraction:
        full = {
            "'m": "is",
            "'d like": "would like",
            "'d love": "would love",
            "'d": "would",
            "'ve": "has",
            "'ll": "will",
        }
        return f"{full[contraction.group(1).lower()]} {contraction.group(2)}".strip()
    words = rest.split()
    if len(words) < 2 or (not words[0].isalpha() and words[0].lower() not in ("don't", "can't", "didn't", "won't")):
        return None
    verb = words[0].lower()
    if verb.endswith("ly") and verb not in ("rely", "reply", "apply", "supply", "fly"):
        predicate = _conjugate(f" {' '.join(words[1:])}")
        return predicate and f"{verb} {predicate}"
    if verb == "don't":
        return " ".join(["doesn't", *words[1:]])
    past = verb.endswith("ed") and not verb.endswith("eed")
    if past or verb in _UNCHANGED or verb.endswith("n't"):
        return " ".join([verb, *words[1:]])
    if verb in _IRREGULAR:
        return " ".join([_IRREGULAR[verb], *words[1:]])
    ending = "es" if verb.endswith(("s", "sh", "ch", "x", "o")) else "s"
    stem = verb[:-1] + "ie" if verb.endswith("y") and verb[-2:-1] not in "aeou" else verb
    return " ".join([stem + ending, *words[1:]])


def _swap_pronouns(text: str, speaker: str, other: str) -> str:
    table = {
        "i'm": f"{speaker} is", "i've": f"{speaker} has", "i'll": f"{speaker} will", "i'd": f"{speaker} would",
        "you're": f"{other} is", "you've": f"{other} has", "you'll": f"{other} will", "you'd": f"{other} would",
        "i": speaker, "me": speaker, "my": f"{speaker}'s", "mine": f"{speaker}'s", "we": "they", "us": "them",
        "you": other, "your": f"{other}'s", "yours": f"{other}'s", "our": "their", "myself": speaker, "am": "is",
    }  # fmt: skip
    return re.sub(r"(?<![#\w])[A-Za-z]+(?:'[a-z]+)?", lambda m: table.get(m.group(0).lower(), m.group(0)), text)


def _content(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"[a-z]+", text.lower()) if word not in _STOP)


def _overlap_f1(part: Counter[str], whole: Counter[str]) -> float:
    """ROUGE-1 F of a sentence's content words against the rest of the dialogue."""
    rest = whole - part
    shared = sum((part & rest).values())
    return 0.0 if not shared else 2.0 * shared / (sum(part.values()) + sum(rest.values()))


def salient_sentences(turns: Sequence[Turn]) -> list[tuple[float, int, str, str]]:
    """Return (salience, position, speaker, sentence), most salient first; early sentences weigh more.

    Raises:
        Nothing.
    """
    sentences = [(turn.speaker, s.strip()) for turn in turns for s in _SENTENCE.findall(turn.text) if s.strip()]
    whole = _content(" ".join(text for _, text in sentences))
    scored = [
        (_overlap_f1(_content(text), whole) * (1.3 - 0.6 * index / len(sentences)), index, speaker, text)
        for index, (speaker, text) in enumerate(sentences)
    ]
    return sorted(scored, key=lambda item: -item[0])


def reported_summary(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Summarize by rewriting the most salient sentences that a rule fits, in their order.

    Raises:
        Nothing.
    """
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    if len(speakers) != 2:
        return None
    picked: list[tuple[int, str]] = []
    words = 0
    limit = rng.randint(12, 30)
    for _, index, speaker, sentence in salient_sentences(turns):
        report = third_person(sentence, speaker, speakers[1 - speakers.index(speaker)])
        if report is None or len(report.split()) > _REPORT_WORDS or report in (text for _, text in picked):
            continue
        picked.append((index, report))
        words += len(report.split())
        if words >= limit or len(picked) == 4:
            break
    if words < 8:
        return None
    target = _join_reports([report for _, report in sorted(picked)])
    cue = rng.choice(("Summary:", "Summary:", "Answer:"))
    return Example("reported_summary", with_instruction(rng, rng.choice(SUMMARY_WORDINGS), render(turns), cue), target)


def retelling(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Report every sentence that a rule fits, in order: many more answer words for one reading than a summary gives.

    Raises:
        Nothing.
    """
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    if len(speakers) != 2:
        return None
    reports: dict[str, None] = {}
    for turn in turns:
        other = speakers[1 - speakers.index(turn.speaker)]
        for sentence in _SENTENCE.findall(turn.text):
            report = third_person(sentence, turn.speaker, other)
            if report is not None and len(report.split()) <= _REPORT_WORDS:
                reports[report] = None
    target = _join_reports(list(reports)) if len(reports) > 1 else ""
    if not target or len(target.split()) > _RETELLING_WORDS:
        return None
    source = with_instruction(rng, rng.choice(RETELLING_WORDINGS), render(turns), rng.choice(("Report:", "Answer:")))
    return Example("retelling", source, target)


def _join_reports(reports: Sequence[str]) -> str:
    """Join reports; two in a row about the same speaker become one sentence with "and"."""
    joined = [reports[0]]
    for report in reports[1:]:
        speaker = report.split(" ", 1)[0]
        if joined[-1].split(" ", 1)[0] == speaker and " and " not in joined[-1]:
            joined[-1] = f"{joined[-1].rstrip('.')} and {report.split(' ', 1)[1]}"
        else:
            joined.append(report)
    return " ".join(joined)


def key_lines(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Quote the one or two lines that best stand for the whole dialogue.

    Raises:
        Nothing.
    """
    if len(turns) < 4:
        return None
    whole = _content(" ".join(turn.text for turn in turns))
    ranked = sorted(range(len(turns)), key=lambda i: -_overlap_f1(_content(turns[i].text), whole))
    picked = sorted(ranked[: rng.randint(1, 2)])
    one = len(picked) == 1
    instruction = "Which line matters most in this conversation?" if one else "Which two lines matter most?"
    return Example("key_lines", with_instruction(rng, instruction, render(turns)), render([turns[i] for i in picked]))


def gap_lines(_rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Write the most telling line, which the dialogue lacks (PEGASUS gap sentence).

    Raises:
        Nothing.
    """
    if len(turns) < 5:
        return None
    whole = _content(" ".join(turn.text for turn in turns))
    best = max(range(len(turns)), key=lambda i: _overlap_f1(_content(turns[i].text), whole))
    shown = [Turn(turn.speaker, "..." if i == best else turn.text) for i, turn in enumerate(turns)]
    return Example("gap_lines", f"Write the line that was left out.\n\n{render(shown)}", turns[best].text)


def title(rng: random.Random, turns: Sequence[Turn]) -> Example | None:
    """Name what somebody wants to do, in two to five words.

    Raises:
        Nothing.
    """
    match = _TITLE.search(" ".join(turn.text for turn in turns[:4]))
    if not match:
        return None
    words = match.group(1).lower().split()
    while words and words[-1] in _STOP:
        words.pop()
    if len(words) < 2:
        return None
    source = with_instruction(rng, rng.choice(TITLE_WORDINGS), render(turns), rng.choice(("Topic:", "Title:")))
    return Example("title", source, " ".join(words))
