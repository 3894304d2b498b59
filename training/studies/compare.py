"""`medley study compare`: methods side by side on one data set, over several seeds: quality, and what it costs.

It does not know how a method is trained, only what a run's figures are.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from adapters.scoring.bootstrap import Interval, seeds_interval
from training.errors import TrainingConfigError
from training.studies.config import CompareConfig, MethodRun, StudyPlaces
from training.studies.ledger import Outcome, run_once
from training.studies.report import Series, megabytes, plot, table, write_report
from training.studies.runs import BASE_ONLY, METRICS, RunRequest, Worker, train_apart

TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_ORDERED_BY = "rougeL"


@dataclass(frozen=True)
class Row:
    """What the seeds of one method came to; `figures` holds one entry a seed that ended well."""

    name: str
    figures: list[dict[str, Any]]
    errors: list[str]

    def scores(self, metric: str) -> Interval:
        """Return the mean of a metric over seeds and cases.

        Raises:
            ValueError: no seed ended well.
        """
        return seeds_interval([figures["scores"][metric] for figures in self.figures])

    def median(self, figure: str) -> float:
        """Return the median of a cost over the seeds.

        Raises:
            statistics.StatisticsError: no seed ended well.
        """
        return statistics.median(figures[figure] for figures in self.figures)


def run(config: CompareConfig, places: StudyPlaces, work: Worker = train_apart) -> Path:
    """Do every run that is not done yet, and return the report's path.

    Raises:
        TrainingConfigError: two rows of one name, or an order that names none.
        OSError: the report's folder cannot be written.
    """
    names = [one.name for one in config.runs]
    if len(set(names)) < len(names) or not set(config.order) <= set(names):
        raise TrainingConfigError("the rows of a comparison have names of their own, and its order names rows")
    rows = [
        collect(one, (0,) if one.method == BASE_ONLY else config.seeds, config.num_cases, places, work)
        for one in config.runs
    ]
    done = [row for row in rows if row.figures]
    if done:
        _draw(done, places.out / "quality.png")
    sections = {
        "Quality": quality_table(rows),
        "Cost": cost_table(rows),
        "The expected order": order_text(rows, config.order),
        "Runs that failed": failures_text(rows),
        "How to read this": _READING,
    }
    return write_report(places.out, "Methods compared", sections, [asdict(row) for row in rows])


def collect(one: MethodRun, seeds: Sequence[int], num_cases: int, places: StudyPlaces, work: Worker) -> Row:
    """Return a method's figures over the seeds; what is done already is read, what fails is kept as an error.

    Raises:
        OSError: the report's folder cannot be written.
    """
    outcomes = [_one_seed(RunRequest(one, seed, num_cases, str(places.data)), places.out, work) for seed in seeds]
    return Row(
        one.name,
        [outcome.figures for outcome in outcomes if outcome.figures is not None],
        [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.figures is None],
    )


def quality_table(rows: Sequence[Row]) -> str:
    """Return ROUGE with intervals, a line a method.

    Raises:
        Nothing.
    """
    lines = [
        [row.name, len(row.figures), *(cell(row.scores(metric)) for metric in METRICS)]
        if row.figures
        else [row.name, 0, *["failed"] * len(METRICS)]
        for row in rows
    ]
    return table(["", "seeds", *TITLES.values()], lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Return medians over the seeds of what training and keeping cost, a line a method.

    Raises:
        Nothing.
    """
    header = ["", "trained", "share", "training, s", "tokens/s", "peak, MB", "on disk, MB", "a token, ms"]
    return table(header, [_cost_cells(row) if row.figures else [row.name, *["failed"] * 7] for row in rows])


def failures_text(rows: Sequence[Row]) -> str:
    """Return what went wrong, a line a run; empty if nothing did.

    Raises:
        Nothing.
    """
    return "\n".join(f"- {error}" for row in rows for error in row.errors)


def order_text(rows: Sequence[Row], order: Sequence[str]) -> str:
    """Say of each neighbouring pair of `order` whether the later one is better, by the interval of the difference.

    Raises:
        Nothing.
    """
    by_name = {row.name: row for row in rows if row.figures}
    if not order:
        return ""
    lines, verdicts = [], []
    for low, high in pairwise(order):
        if low not in by_name or high not in by_name:
            missing = low if low not in by_name else high
            lines.append(f"- {low} < {high}: not known, since `{missing}` has no figures.")
            verdicts.append(None)
            continue
        gap = difference(by_name[high], by_name[low])
        verdicts.append(gap.low > 0)
        lines.append(
            f"- {low} < {high}: {_verdict(gap)}; {high} is {gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]."
        )
    return f"{_overall(order, verdicts)}\n\n" + "\n".join(lines)


def difference(better: Row, worse: Row) -> Interval:
    """Return the interval of the difference in ROUGE-L, case by case; the same seeds are set beside each other.

    A method with one seed, as the base, is set beside each seed of the other.

    Raises:
        ValueError: a side has no figures.
    """
    ours, theirs = ([figures["scores"][_ORDERED_BY] for figures in row.figures] for row in (better, worse))
    length = min(len(ours), len(theirs)) if min(len(ours), len(theirs)) > 1 else max(len(ours), len(theirs))
    pairs = zip((ours * length)[:length], (theirs * length)[:length], strict=True)
    return seeds_interval([[a - b for a, b in zip(left, right, strict=True)] for left, right in pairs])


def cell(interval: Interval) -> str:
    """Return an interval as a table shows it.

    Raises:
        Nothing.
    """
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _one_seed(request: RunRequest, out: Path, work: Worker) -> Outcome:
    folder = out / "runs" / f"{request.run.name}-{request.seed}"
    # The recipe's text, not its name: a recipe that changed makes other figures.
    settings = asdict(request) | {"text": _text(request.run.recipe)}
    return run_once(folder, settings, lambda empty: work(request, empty))


def _text(recipe: str) -> str:
    path = Path(recipe)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _cost_cells(row: Row) -> list[str]:
    trained, total, seconds = row.median("num_trainable"), row.median("num_total"), row.median("train_s")
    speed = f"{row.median('num_tokens') / seconds:,.0f}" if seconds else ""
    return [
        row.name,
        f"{trained:,.0f}",
        f"{100 * trained / total:.2f} %",
        f"{seconds:,.0f}" if seconds else "",
        speed,
        megabytes(row.median("peak_bytes")) if seconds else "",
        f"{row.median('disk_bytes') / 1e6:,.2f}",
        f"{1000 * row.median('token_s'):.1f}" if row.figures[0]["token_s"] else "not served",
    ]


def _verdict(gap: Interval) -> str:
    if not gap.is_clear:
        return "neither is better within the interval"
    return "holds" if gap.low > 0 else "does not hold: it is the other way round"


def _overall(order: Sequence[str], verdicts: Sequence[bool | None]) -> str:
    chain = " < ".join(order)
    if all(verdict is True for verdict in verdicts):
        return f"By {TITLES[_ORDERED_BY]}, {chain} holds: each step is beyond its 95 % interval."
    if None in verdicts:
        return f"By {TITLES[_ORDERED_BY]}, whether {chain} holds is not known: some runs failed."
    return f"By {TITLES[_ORDERED_BY]}, {chain} is not shown as a whole; step by step:"


def _draw(rows: Sequence[Row], picture: Path) -> None:
    """Plot quality over trained parameters; the base, which trains none, stands at one."""
    series = []
    for row in rows:
        scores = row.scores(_ORDERED_BY)
        below, above = [scores.value - scores.low], [scores.high - scores.value]
        series.append(Series(row.name, [max(1.0, row.median("num_trainable"))], [scores.value], below, above))
    plot(picture, series, title="Quality and size", x="trained parameters", y="ROUGE-L, %", log_x=True)


_READING = """
![quality](quality.png)

ROUGE is the F-measure in percent (`rouge_score`, stemmed, the best of several references), greedy answers on the
validation cases. Brackets are 95 % intervals by bootstrap over the cases and, where there are several, the seeds; with
few seeds they are too narrow. Costs are medians over the seeds. *Peak* is the most resident memory of the training
process over what it held before the base was loaded, evaluation on the way included. *A token* is the time of an answer
from Medley's engine over its tokens, the prompt's reading included, one request at a time, adapters not merged.
"""
