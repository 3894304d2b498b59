"""`medley study forgetting`: how much is lost of earlier and held-out tasks, by method, and what holds it back.

It does not know how tasks are learned, only the matrix that a sequence of them gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean

from training.errors import TrainingConfigError
from training.studies.config import ForgettingConfig, MethodRun, StudyPlaces, Sweep
from training.studies.ledger import Outcome, run_once
from training.studies.report import Series, plot, table, write_report
from training.studies.runs import load_task, make_learner
from training.studies.sequence import (
    MITIGATIONS,
    NO_MITIGATION,
    Learned,
    Matrix,
    Restraint,
    learn_in_sequence,
    mean_matrix,
    summary,
)

_FIGURES = {
    "f_earlier": "F, earlier tasks",
    "f_held_out": "F, held-out tasks",
    "f_switched_off": "the same, adapter off",
    "last_task": "last task",
}
# The row the others are set beside, where there is one of this name.
_FULL = "full"


@dataclass(frozen=True)
class Row:
    """What the seeds of one method under one restraint came to.

    Attributes:
        name: Of the method's row.
        restraint: What held it back.
        columns: Names of the tasks, held-out ones last.
        num_tasks: How many of them were learned.
        matrices: R of each seed that ended well.
        switched_off: Of the same seeds, the held-out tasks before and after with the adapter switched off; empty where
            there is none.
        errors: Of the others.
    """

    name: str
    restraint: Restraint
    columns: list[str]
    num_tasks: int
    matrices: list[Matrix]
    switched_off: list[Matrix]
    errors: list[str]

    def figures(self) -> dict[str, float]:
        """Return the means over the seeds; empty where none ended well.

        Raises:
            Nothing.
        """
        each = self._each()
        return {name: fmean(one[name] for one in each) for name in (each[0] if each else ())}

    def cells(self, names: Sequence[str]) -> list[str]:
        """Return these figures as a table shows them: the mean, and the range where there are several seeds.

        Raises:
            Nothing.
        """
        each = self._each()
        return [_cell([one[name] for one in each if name in one]) if each else "failed" for name in names]

    def _each(self) -> list[Mapping[str, float]]:
        return [
            summary(matrix, self.num_tasks, off) for matrix, off in zip(self.matrices, self.switched_off, strict=True)
        ]


def run(config: ForgettingConfig, places: StudyPlaces) -> Path:
    """Do every sequence that is not done yet, and return the report's path.

    Raises:
        TrainingConfigError: sweeps of a method that is no row, or an unknown mitigation.
        OSError: the report's folder cannot be written.
    """
    by_name = {one.name: one for one in config.methods}
    if config.sweeps and config.swept not in by_name:
        raise TrainingConfigError(f"swept is one of {', '.join(by_name)}, not {config.swept!r}")
    plain = [_row(one, Restraint(), config, places) for one in config.methods]
    sweeps = {
        sweep.mitigation: [
            # A strength of nought is plain fine-tuning, bit for bit: it is not run twice.
            replace(next(row for row in plain if row.name == config.swept), restraint=_restraint(config, sweep, 0.0))
            if strength == 0
            else _row(by_name[config.swept], _restraint(config, sweep, strength), config, places)
            for strength in sweep.strengths
        ]
        for sweep in config.sweeps
    }
    return _report(config, places, plain, sweeps)


def _restraint(config: ForgettingConfig, sweep: Sweep, strength: float) -> Restraint:
    return Restraint(sweep.mitigation, strength, config.num_fisher_examples)


def _row(one: MethodRun, restraint: Restraint, config: ForgettingConfig, places: StudyPlaces) -> Row:
    outcomes = [_one_seed(one, restraint, seed, config, places) for seed in config.seeds]
    done = [outcome.figures for outcome in outcomes if outcome.figures is not None]
    return Row(
        name=one.name,
        restraint=restraint,
        columns=done[0]["columns"] if done else [],
        num_tasks=len(config.tasks),
        matrices=[figures["matrix"] for figures in done],
        switched_off=[figures["switched_off"] for figures in done],
        errors=[f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.figures is None],
    )


def _one_seed(
    one: MethodRun, restraint: Restraint, seed: int, config: ForgettingConfig, places: StudyPlaces
) -> Outcome:
    recipes = (*config.tasks, *config.held_out)
    kind = f"{restraint.mitigation}-{restraint.strength:g}" if restraint.mitigation != NO_MITIGATION else "plain"
    settings = {
        "run": asdict(one),
        "restraint": asdict(restraint),
        "seed": seed,
        "num_cases": config.num_cases,
        "recipes": [(name, Path(name).read_text(encoding="utf-8")) for name in (one.recipe, *recipes)],
        "num_tasks": len(config.tasks),
        "measured": [field.name for field in fields(Learned)],
    }

    def learn(folder: Path) -> dict[str, object]:
        learner = make_learner(one, seed)
        tasks = [load_task(recipe, places.data, learner.base, config.num_cases) for recipe in recipes]
        learned, held_out = tasks[: len(config.tasks)], tasks[len(config.tasks) :]
        found = learn_in_sequence(learner, learned, held_out, restraint, folder)
        return {"columns": [task.name for task in tasks], **asdict(found)}

    return run_once(places.out / "runs" / f"{one.name}-{kind}-{seed}", settings, learn)


def _report(config: ForgettingConfig, places: StudyPlaces, plain: Sequence[Row], sweeps: dict[str, list[Row]]) -> Path:
    rows = [*plain, *(row for several in sweeps.values() for row in several)]
    if any(row.matrices for several in sweeps.values() for row in several):
        _draw(sweeps, places.out / "sweeps.png", config.swept)
    sections = {
        "Forgetting by method": f"{config.num_cases} cases a task at most: with few cases or one seed, a point or two "
        "of difference is chance.\n\n" + _method_text(plain),
        f"Held back, for `{config.swept}`": _sweep_text(sweeps),
        "Scores after each task": "\n\n".join(_matrix_text(row) for row in plain if row.matrices),
        "Runs that failed": "\n".join(dict.fromkeys(f"- {error}" for row in rows for error in row.errors)),
        "How to read this": _READING.format(mitigations=", ".join(MITIGATIONS[1:])),
    }
    return write_report(places.out, "Forgetting", sections, [asdict(row) | {"f": row.figures()} for row in rows])


def _method_text(rows: Sequence[Row]) -> str:
    figures = {row.name: row.figures() for row in rows}
    full = figures.get(_FULL, {})
    said = [
        f"- {_FIGURES[key]}: `{name}` forgets {_compared(own[key], full[key])} `{_FULL}`."
        for name, own in figures.items()
        if name != _FULL
        for key in ("f_earlier", "f_held_out")
        if key in own and key in full
    ]
    heads = [[row.name, len(row.matrices)] for row in rows]
    return _table(["", "seeds"], heads, rows) + "\n\n" + "\n".join(said)


def _table(titles: Sequence[str], heads: Sequence[Sequence[object]], rows: Sequence[Row]) -> str:
    """Set figures behind the rows' heads, but for those that no row has."""
    names = [name for name in _FIGURES if any(name in row.figures() for row in rows)]
    lines = [[*head, *row.cells(names)] for head, row in zip(heads, rows, strict=True)]
    return table([*titles, *(_FIGURES[name] for name in names)], lines)


def _compared(value: float, other: float) -> str:
    if abs(value - other) < 0.05:
        return f"as much ({value:.1f}) as"
    return f"{'less' if value < other else 'more'} ({value:.1f} against {other:.1f}) than"


def _sweep_text(sweeps: dict[str, list[Row]]) -> str:
    parts = []
    for mitigation, rows in sweeps.items():
        heads = [[f"{row.restraint.strength:g}"] for row in rows]
        parts.append(f"### {mitigation}\n\n" + _table(["strength"], heads, rows) + _trend(rows))
    return "\n\n".join([*parts, "![forgetting over strength](sweeps.png)"]) if parts else ""


def _trend(rows: Sequence[Row]) -> str:
    """Say what the strongest restraint did beside the weakest, and what it cost."""
    done = sorted((row for row in rows if row.matrices), key=lambda row: row.restraint.strength)
    if len(done) < 2:
        return ""
    weak, strong = done[0].figures(), done[-1].figures()
    said = [f"{title} goes from {weak[key]:.1f} to {strong[key]:.1f}" for key, title in _FIGURES.items() if key in weak]
    ends = f"{done[0].restraint.strength:g} to {done[-1].restraint.strength:g}"
    return f"\n\nFrom strength {ends}: {'; '.join(said)}."


def _matrix_text(row: Row) -> str:
    names = ["before", *(f"after {name}" for name in row.columns[: row.num_tasks])]
    matrix = mean_matrix(row.matrices)
    held_out = [f"{name} (held out)" for name in row.columns[row.num_tasks :]]
    lines = [[name, *(f"{score:.1f}" for score in scores)] for name, scores in zip(names, matrix, strict=True)]
    return f"### {row.name}\n\n" + table(["", *row.columns[: row.num_tasks], *held_out], lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _draw(sweeps: dict[str, list[Row]], picture: Path, swept: str) -> None:
    series = []
    for mitigation, rows in sweeps.items():
        for key in ("f_earlier", "f_held_out"):
            points = [(row.restraint.strength, row.figures()[key]) for row in rows if key in row.figures()]
            if points:
                series.append(Series(f"{mitigation}: {_FIGURES[key]}", *zip(*sorted(points), strict=True)))
    plot(picture, series, title=f"Forgetting of {swept}", x="strength", y="F, points of ROUGE-L", log_x=True)


_READING = """
Scores are ROUGE-L in percent. A row of a matrix is measured after a task was learned, by one set of weights that goes
on from task to task. F is the best score a task had before the last one was learned, less its score at the end,
averaged over the tasks (Chaudhry et al. 2018): 0 is nothing lost, below 0 is a gain. *Earlier tasks* were learned
before the last; *held-out tasks* never were. *Last task* is the score of the task learned last: a restraint that lowers
it has held back learning, too. Of several seeds the mean is shown, and the smallest and largest.

The adapter stays on while it learns one task after another, and for tasks it is not for. *Adapter off* is how a server
uses it: held-out tasks are asked of the base alone, which an adapter leaves as it was; a base that was fine-tuned whole
cannot be had back.

Ways to hold back ({mitigations}): `replay` mixes that share of earlier tasks' examples in; `l2sp` and `kl` hold weights
or outputs near what they were before the current task; `ewc` does so by what mattered to earlier tasks, by the
empirical Fisher information, example by example, so it restrains nothing while the first task is learned.
"""
