"""What the data of a run are: sources, rates, counts and licences; and what is wrong with them. As Markdown or JSON.

It formats what it is given.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from training.data.contamination import Leak
from training.data.problems import Problem, describe

_NUM_LEAKS_SHOWN = 10
_HEADER = "| source | licence | train | held out | validation | rate | realised | tokens | cut | dropped | other |"


@dataclass(frozen=True)
class SourceReport:
    """One source: examples of each part, its rate as configured and in the first epoch, and what became of the rest.

    `num_tokens` counts prompts and answers of the training part once, after cutting; it is 0 without a tokenizer, as is
    `num_cut`. `num_other_splits` are records of splits that are neither learned from nor measured on.
    """

    name: str
    licence: str
    num_train: int
    num_held_out: int
    num_validation: int
    rate: float
    realised_rate: float
    num_tokens: int
    num_cut: int
    num_dropped: int
    num_other_splits: int


@dataclass(frozen=True)
class MixtureReport:
    """All sources of a run, and how many examples an epoch draws from them."""

    sources: tuple[SourceReport, ...]
    num_epoch_examples: int

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of the sources, each once."""
        return tuple(dict.fromkeys(source.licence for source in self.sources))

    def to_markdown(self) -> str:
        """Return the report as a table.

        Raises:
            Nothing.
        """
        rows = [
            f"| {s.name} | {s.licence} | {s.num_train:,} | {s.num_held_out:,} | {s.num_validation:,} | "
            f"{s.rate:.2%} | {s.realised_rate:.2%} | {s.num_tokens:,} | {s.num_cut:,} | {s.num_dropped:,} | "
            f"{s.num_other_splits:,} |"
            for s in self.sources
        ]
        return "\n".join(
            [
                _HEADER,
                "| --- | --- |" + " ---: |" * 9,
                *rows,
                "",
                f"An epoch draws {self.num_epoch_examples:,} examples.",
            ]
        )

    def to_json(self) -> str:
        """Return the report as JSON.

        Raises:
            Nothing.
        """
        return json.dumps({**asdict(self), "licences": self.licences}, indent=1)


@dataclass(frozen=True)
class DataReport:
    """Everything `check_data` found. `mixture` is None where the problems leave nothing to report on."""

    mixture: MixtureReport | None
    problems: tuple[Problem, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether a run would start."""
        return not self.problems

    def to_markdown(self) -> str:
        """Return the report as sections; those without content are left out.

        Raises:
            Nothing.
        """
        leaks = [f"- {leak.train_origin} ~ {leak.evaluation_origin}: {leak.reason}" for leak in self.leaks]
        if len(leaks) > _NUM_LEAKS_SHOWN:
            leaks[_NUM_LEAKS_SHOWN:] = [f"- … and {len(leaks) - _NUM_LEAKS_SHOWN} more"]
        sections = {
            "Mixture": self.mixture.to_markdown() if self.mixture else "",
            "Problems": "\n".join(describe(problem) for problem in self.problems),
            "Contamination": "\n".join(leaks),
            "Warnings": "\n".join(f"- {warning}" for warning in self.warnings),
        }
        return "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items() if body)

    def to_json(self) -> str:
        """Return the report as JSON.

        Raises:
            Nothing.
        """
        return json.dumps({**asdict(self), "is_sound": self.is_sound}, indent=1)
