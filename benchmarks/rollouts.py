"""``python -m benchmarks rollouts``: how often rollouts decide wrongly, and how many requests a decision takes.

Nothing is served: scores are drawn as ROUGE-L lies on dialogues, around 25 with a standard deviation of 12, from a beta
law; which request is the candidate's is drawn as the server's hash deals it. The verdicts are the server's own code's.
The first part looks again and again as the server does, at rollouts whose versions are equal: each promotion and each
rollback is wrong. The second gives the candidate an effect and counts the scored requests of both arms until the
verdict, looking whenever they have grown by a twentieth.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine
from server.evaluation.rollouts.evidence import Values, is_above
from server.evaluation.rollouts.judge import ERROR_RATE, Side, judge_sides
from server.evaluation.rollouts.records import Plan, Terms, Verdict

MEAN = 25.0
DEVIATION = 12.0
_EFFECTS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
_LARGEST = 200_000
_FIRST_LOOK = 20
_GROWTH = 1.05
_FAILING = 0.01


@dataclass(frozen=True, slots=True)
class NullFigures:
    """Rollouts without a difference.

    Attributes:
        percent: The candidate's share.
        num_rollouts: Rollouts simulated.
        num_requests: Requests of each.
        look_every: Requests between two looks.
        verdicts: How many ended with which.
    """

    percent: int
    num_rollouts: int
    num_requests: int
    look_every: int
    verdicts: dict[str, int]


@dataclass(frozen=True, slots=True)
class EffectFigures:
    """Rollouts with a difference.

    Attributes:
        percent: The candidate's share.
        effect: By how many points its mean is higher.
        num_rollouts: Rollouts simulated.
        num_wrong: Those in which it was found to be worse.
        num_requests: Share of rollouts decided → scored requests that took; None where more than 200,000.
    """

    percent: int
    effect: float
    num_rollouts: int
    num_wrong: int
    num_requests: dict[str, int | None]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``rollouts`` to the benchmarks' command line."""
    parser = commands.add_parser("rollouts", help="wrong decisions, and requests needed, of simulated rollouts")
    parser.add_argument("--num-rollouts", type=int, default=200)
    parser.add_argument("--num-requests", type=int, default=Terms().max_num_requests, help="of each without an effect")
    parser.add_argument("--look-every", type=int, default=20, help="requests between two looks, without an effect")
    parser.add_argument("--percent", type=int, nargs="+", default=[50, 10])
    parser.add_argument("--effects", type=float, nargs="*", default=_EFFECTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    began_s = time.monotonic()
    nulls, effects = [], []
    for percent in arguments.percent:
        null = measure_null(
            percent, arguments.num_rollouts, arguments.num_requests, arguments.look_every, seed=arguments.seed
        )
        nulls.append(null)
        wrong = wrong_decisions(null)
        print(
            f"{percent} %, no difference: {wrong} of {null.num_rollouts} decided wrongly; {null.verdicts}", flush=True
        )
        for effect in arguments.effects:
            found = measure_effect(percent, effect, arguments.num_rollouts, seed=arguments.seed)
            effects.append(found)
            print(f"{percent} %, {effect:+g} points: {found.num_requests}, {found.num_wrong} wrong", flush=True)
    print(f"took {time.monotonic() - began_s:.0f} s")
    if arguments.json:
        results = {"no_difference": list(map(asdict, nulls)), "effects": list(map(asdict, effects))}
        arguments.json.write_text(json.dumps({**results, **describe_machine(1)}, indent=2) + "\n")


def measure_null(percent: int, num_rollouts: int, num_requests: int, look_every: int, *, seed: int) -> NullFigures:
    """Simulate rollouts of two equal versions, as the server looks at them, and return their verdicts."""
    verdicts: Counter[str] = Counter()
    plan = Plan("simulated", "stable", 1, 2, Terms(percent=percent))
    for draws in _generators(seed, num_rollouts):
        scores, is_candidate = scores_of(draws, MEAN, num_requests), _deal(draws, percent, num_requests)
        # One law of errors and latencies for both: what a guard rail finds in it is wrong, too.
        failures = (draws.random(num_requests) < _FAILING).astype(np.float64)
        latencies_s = draws.lognormal(-1.5, 0.6, num_requests)
        verdict = Verdict.NO_DATA
        for num_seen in range(look_every, num_requests + 1, look_every):
            stable, candidate = (
                Side(scores[:num_seen][side], failures[:num_seen][side], latencies_s[:num_seen][side])
                for side in (~is_candidate[:num_seen], is_candidate[:num_seen])
            )
            verdict = judge_sides(plan, stable, candidate, verdict).verdict
            if verdict.is_final:
                break
        verdicts[str(verdict)] += 1
    return NullFigures(percent, num_rollouts, num_requests, look_every, dict(verdicts))


def wrong_decisions(null: NullFigures) -> int:
    """Return how many rollouts without a difference were promoted, or rolled back for their quality."""
    return null.verdicts.get(Verdict.BETTER, 0) + null.verdicts.get(Verdict.WORSE, 0)


def measure_effect(percent: int, effect: float, num_rollouts: int, *, seed: int) -> EffectFigures:
    """Simulate rollouts of a candidate that is better by ``effect`` points, until each is decided."""
    taken, num_wrong = [], 0
    for draws in _generators(seed, num_rollouts):
        num_scored, is_right = _requests_until_decided(draws, percent, effect)
        taken.append(num_scored)
        num_wrong += not is_right
    numbers = sorted(taken)
    needed = {f"{share:.0%}": numbers[int(share * len(numbers)) - 1] for share in (0.5, 0.8, 0.95)}
    known = {share: number if number <= _LARGEST else None for share, number in needed.items()}
    return EffectFigures(percent, effect, num_rollouts, num_wrong, known)


def scores_of(draws: np.random.Generator, mean: float, count: int) -> Values:
    """Return scores from 0 to 1 around a mean in points; the spread's law has the same strength at every mean."""
    strength = MEAN / 100 * (1 - MEAN / 100) / (DEVIATION / 100) ** 2 - 1
    # To a tenth of a point: scores of short texts are often alike.
    return np.round(draws.beta(mean / 100 * strength, (1 - mean / 100) * strength, count), 3)


def _requests_until_decided(draws: np.random.Generator, percent: int, effect: float) -> tuple[int, bool]:
    """Return the number of scored requests, beyond the largest if none decided it, and whether it was decided well."""
    share = percent / 100
    is_candidate = np.zeros(0, bool)
    scores = np.zeros(0)
    num_scored = _FIRST_LOOK
    while num_scored <= _LARGEST:
        count = num_scored - len(scores)
        new = _deal(draws, percent, count)
        better, plain = scores_of(draws, MEAN + effect, count), scores_of(draws, MEAN, count)
        is_candidate, scores = np.append(is_candidate, new), np.append(scores, np.where(new, better, plain))
        candidate, stable = scores[is_candidate], scores[~is_candidate]
        if is_above(candidate, stable, share=share, error_rate=ERROR_RATE / 2):
            return num_scored, True
        if is_above(stable, candidate, share=1 - share, error_rate=ERROR_RATE / 2):
            return num_scored, False
        num_scored = max(num_scored + 1, int(num_scored * _GROWTH))
    return _LARGEST + 1, True


def _deal(draws: np.random.Generator, percent: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.bool]]":
    return draws.random(count) < percent / 100


def _generators(seed: int, count: int) -> Iterator[np.random.Generator]:
    children: Sequence[np.random.SeedSequence] = np.random.SeedSequence(seed).spawn(count)
    return map(np.random.default_rng, children)
