"""What the server reports is ROUGE as ``rouge_score`` gives it, on ten thousand seeded pairs of texts.

Realistic summaries first, then what breaks scorers: empty texts, texts without a word, other scripts, combining
characters, odd white space, one word again and again, long texts, lines.
"""

import random
import unicodedata
from collections.abc import Callable, Iterator

import pytest
from rouge_score.rouge_scorer import RougeScorer as Theirs

from adapters.scoring import METRICS, RougeScorer
from adapters.scoring.plugins import metric_suite

NUM_PAIRS = 10_000
_NUM_LONG = 12
_NAMES = ("Anna", "Bob", "Dr. Weiß", "Zoë", "#Person1#", "#Person2#", "José", "李雷", "O'Neil", "Ms. Smith-Jones")
_VERBS = ("asks", "tells", "wants", "agreed", "is driving", "studies", "has been running", "hoped", "flies", "relies")
_THINGS = (
    *(
        "the small room",
        "a red car",
        "two tickets",
        "$1,250.50",
        "the children's beds",
        "an appointment at 9:30",
        "flies",
    ),
    *(
        "happiness",
        "U.S. visas",
        "running shoes",
        "a cup of tea",
        "the university",
        "universal rules",
        "their own café",
    ),
)
_ENDS = (
    "on Friday.",
    "before the holidays!",
    "in the garage",
    "because it's cold outside.",
    "— again?",
    "(as always).",
)
_SCRIPTS = (
    "日本語のテキスト",
    "Привет мир",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👩‍👩‍👧 🎉",
    "ẞtraße \uff26\uff55\uff4c\uff4c",
    "e\u0301te\u0301",
)
_SPACES = (" ", "  ", "\t", "\u00a0", "\u2003", "\r\n", "\x0b", "\n", "\n\n", "\u200b")

Make = Callable[[random.Random], tuple[str, str]]


def _sentence(draws: random.Random) -> str:
    return " ".join(draws.choice(kind) for kind in (_NAMES, _VERBS, _THINGS, _ENDS))


def _reworded(draws: random.Random, text: str) -> str:
    """Drop, double, swap and change words, as a model that almost knows the reference."""
    words = text.split(" ")
    for _ in range(draws.randrange(1, 6)):
        place = draws.randrange(len(words))
        match draws.randrange(4):
            case 0 if len(words) > 1:
                del words[place]
            case 1:
                words.insert(place, words[place])
            case 2:
                other = draws.randrange(len(words))
                words[place], words[other] = words[other], words[place]
            case _:
                words[place] = draws.choice((words[place].upper(), words[place] + "s", draws.choice(_VERBS)))
    return " ".join(words)


def _realistic(draws: random.Random) -> tuple[str, str]:
    reference = draws.choice((" ", "\n")).join(_sentence(draws) for _ in range(draws.randrange(1, 5)))
    if draws.random() < 0.2:
        return "\n".join(_sentence(draws) for _ in range(draws.randrange(1, 4))), reference
    return _reworded(draws, reference), reference


def _empty(draws: random.Random) -> tuple[str, str]:
    without_words = ("", " ", "\n\n", "...", "—", "日本語", "\u200b", "'", "_ _")
    pair = [draws.choice(without_words), draws.choice((*without_words, _sentence(draws)))]
    draws.shuffle(pair)
    return pair[0], pair[1]


def _unicode(draws: random.Random) -> tuple[str, str]:
    def text() -> str:
        parts = [draws.choice((draws.choice(_SCRIPTS), _sentence(draws))) for _ in range(draws.randrange(1, 5))]
        form = draws.choice(("NFC", "NFD", "NFKC", "NFKD"))
        return unicodedata.normalize(form, draws.choice(_SPACES).join(parts))

    return text(), text()


def _noise(draws: random.Random) -> tuple[str, str]:
    def text() -> str:
        codes = (
            draws.choice((draws.randrange(32, 127), draws.randrange(160, 0xD800))) for _ in range(draws.randrange(80))
        )
        return "".join(map(chr, codes))

    return text(), text()


def _repeating(draws: random.Random) -> tuple[str, str]:
    words = [draws.choice(("cold", "colder", "a", "1", "ran")) for _ in range(2)]
    return tuple(  # type: ignore[return-value]
        draws.choice(_SPACES).join(draws.choice(words) for _ in range(draws.randrange(60))) for _ in range(2)
    )


def _long(draws: random.Random) -> tuple[str, str]:
    reference = "\n".join(_sentence(draws) for _ in range(draws.randrange(60, 120)))
    return _reworded(draws, reference), reference


def pairs() -> Iterator[tuple[str, str]]:
    """Yield the pairs, the same ones each time: six in ten realistic."""
    draws = random.Random(20_250)
    makes: list[Make] = [_realistic, _empty, _unicode, _noise, _repeating]
    for _ in range(NUM_PAIRS - _NUM_LONG):
        [make] = draws.choices(makes, weights=[6, 1, 1, 1, 1])
        yield make(draws)
    for _ in range(_NUM_LONG):
        yield _long(draws)


@pytest.fixture(scope="module")
def expected() -> list[dict[str, float]]:
    theirs = Theirs(list(METRICS), use_stemmer=True)
    found = [theirs.score(reference, prediction) for prediction, reference in pairs()]
    return [{metric: 100.0 * scores[metric].fmeasure for metric in METRICS} for scores in found]


def _furthest(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    return max(abs(one[metric] - other[metric]) for one, other in zip(ours, theirs, strict=True) for metric in METRICS)


# Ten thousand pairs are half a minute of processor time, which a busy machine gives late.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_pairs_hold_what_they_are_to_hold(expected: list[dict[str, float]]) -> None:
    found = list(pairs())
    assert len(set(found)) > 0.9 * NUM_PAIRS
    assert sum(not prediction.strip() or not reference.strip() for prediction, reference in found) > 200
    assert sum(not (prediction + reference).isascii() for prediction, reference in found) > 3000
    assert max(len(prediction.split()) for prediction, _ in found) > 500
    # Neither all alike nor all different: between are the ones that tell.
    assert sum(0 < scores["rougeL"] < 100 for scores in expected) > 0.6 * NUM_PAIRS
    assert sum(scores["rougeL"] != scores["rougeLsum"] for scores in expected) > 0.1 * NUM_PAIRS


def test_servers_rouge_of_ten_thousand_pairs_equals_rouge_score(expected: list[dict[str, float]]) -> None:
    score = metric_suite(["rouge"])
    ours = [score(prediction, [reference], "") for prediction, reference in pairs()]
    assert _furthest(ours, expected) <= 1e-9


@pytest.mark.torch
def test_evaluate_modules_rouge_of_the_pairs_equals_rouge_score(expected: list[dict[str, float]]) -> None:
    scorer = RougeScorer()
    # Each call of evaluate takes milliseconds more than the score: one pair in 25, and all long ones.
    chosen = [*range(0, NUM_PAIRS - _NUM_LONG, 25), *range(NUM_PAIRS - _NUM_LONG, NUM_PAIRS)]
    found = list(pairs())
    ours = [scorer.score(found[place][0], [found[place][1]]) for place in chosen]
    assert _furthest(ours, [expected[place] for place in chosen]) <= 1e-9


def test_servers_rouge_of_several_references_is_the_best_of_each() -> None:
    theirs, score = Theirs(list(METRICS), use_stemmer=True), metric_suite(["rouge"])
    found = list(pairs())[:500]
    for (prediction, first), (_, second), (_, third) in zip(found, found[1:], found[2:], strict=False):
        best = theirs.score_multi([first, second, third], prediction)
        ours = score(prediction, [first, second, third], "")
        assert ours == pytest.approx({metric: 100.0 * best[metric].fmeasure for metric in METRICS}, abs=1e-9)
