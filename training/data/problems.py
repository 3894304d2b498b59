"""Everything that is wrong with the data, collected first and told at once, by kind, with places and advice.

It does not know where data come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from training.errors import TrainingDataError

_NUM_SHOWN = 3


@dataclass
class Problem:
    """One kind of mistake: how often it occurs, its first places with what is wrong there, and what to do about it."""

    kind: str
    advice: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class ProblemLog:
    """Mistakes by kind, in the order they were met."""

    def __init__(self) -> None:
        """Start without any."""
        self._problems: dict[str, Problem] = {}

    def add(self, kind: str, origin: str, detail: str, advice: str) -> None:
        """Note one mistake at `origin` (`file:line`); of each kind the first three are kept, all are counted.

        Raises:
            Nothing.
        """
        problem = self._problems.setdefault(kind, Problem(kind, advice))
        problem.count += 1
        if len(problem.examples) < _NUM_SHOWN:
            problem.examples.append(f"{origin}: {detail}")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was noted so far."""
        return tuple(self._problems.values())

    @property
    def count(self) -> int:
        """How many mistakes were noted."""
        return sum(problem.count for problem in self.problems)

    def raise_if_any(self) -> None:
        """Stop here if anything was noted.

        Raises:
            TrainingDataError: with every kind, its count, first places and advice.
        """
        if self._problems:
            lines = [f"the training data have {self.count} problem{'s' if self.count > 1 else ''}; nothing was trained"]
            raise TrainingDataError("\n".join(lines + [describe(problem) for problem in self.problems]))


def describe(problem: Problem) -> str:
    """Return a problem as a few lines of text.

    Raises:
        Nothing.
    """
    places = [f"    {example}" for example in problem.examples]
    if problem.count > len(problem.examples):
        places.append(f"    … and {problem.count - len(problem.examples)} more")
    return "\n".join([f"  {problem.kind} ({problem.count}): {problem.advice}", *places])
