"""`medley study rank-study`: how good a LoRA is at each rank, and what a rank costs. It compares nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.studies.compare import Row, cell, collect, difference, failures_text
from training.studies.config import MethodRun, RankConfig, StudyPlaces
from training.studies.report import Series, plot, table, write_report
from training.studies.runs import Worker, train_apart

_LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def run(config: RankConfig, places: StudyPlaces, work: Worker = train_apart) -> Path:
    """Train a LoRA of each rank that is not trained yet, and return the report's path.

    Raises:
        OSError: the report's folder cannot be written.
    """
    rows = [collect(_method(config, rank), config.seeds, config.num_cases, places, work) for rank in config.ranks]
    done = [(rank, row) for rank, row in zip(config.ranks, rows, strict=True) if row.figures]
    if done:
        _draw(done, places.out / "ranks.png")
    sections = {
        "By rank": _table(config.ranks, rows),
        "Where it stops to grow": _plateau(done),
        "Runs that failed": failures_text(rows),
        "How to read this": _READING,
    }
    return write_report(places.out, "LoRA by rank", sections, [asdict(row) for row in rows])


def _method(config: RankConfig, rank: int) -> MethodRun:
    settings = (*config.overrides, f"lora.rank={rank}", f"lora.alpha={rank * config.alpha_per_rank}")
    return MethodRun(f"rank-{rank}", "lora", config.recipe, settings)


def _table(ranks: Sequence[int], rows: Sequence[Row]) -> str:
    lines = []
    for rank, row in zip(ranks, rows, strict=True):
        if not row.figures:
            lines.append([rank, *["failed"] * (3 + len(_LABELS))])
            continue
        trained, total = row.median("num_trainable"), row.median("num_total")
        scores = [cell(row.scores(metric)) for metric in _LABELS]
        lines.append([rank, f"{trained:,.0f}", f"{100 * trained / total:.2f} %", f"{row.median('loss'):.3f}", *scores])
    return table(["rank", "trained", "share", "training loss", *_LABELS.values()], lines)


def _plateau(done: Sequence[tuple[int, Row]]) -> str:
    """Name the smallest rank that the best one does not clearly beat."""
    if len(done) < 2:
        return ""
    best_rank, best = max(done, key=lambda pair: pair[1].scores("rougeL").value)
    level = next(rank for rank, row in done if row is best or difference(best, row).low <= 0)
    if level == best_rank:
        return f"Rank {best_rank} has the best ROUGE-L, and every smaller rank tried is worse beyond its 95 % interval."
    return (
        f"Rank {best_rank} has the best ROUGE-L; from rank {level} on the difference to it is within the 95 % interval "
        "of the difference, case by case, so nothing here shows that a rank above it is worth its parameters."
    )


def _draw(done: Sequence[tuple[int, Row]], picture: Path) -> None:
    series = []
    for metric, label in _LABELS.items():
        scores = [row.scores(metric) for _, row in done]
        below, above = [s.value - s.low for s in scores], [s.high - s.value for s in scores]
        series.append(Series(label, [rank for rank, _ in done], [s.value for s in scores], below, above))
    plot(picture, series, title="LoRA by rank", x="rank", y="F-measure, %", log_x=True)


_READING = """
![quality by rank](ranks.png)

Every rank is trained by the same recipe, seeds and steps; alpha grows with the rank, so the update is scaled alike. The
training loss is the mean over the last logged steps. Brackets are 95 % intervals by bootstrap over the validation cases
and, where there are several, the seeds.
"""
