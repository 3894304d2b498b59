"""Learn tasks one after another with one set of weights, and measure every task after each: the matrix R.

It knows how forgetting is held back. It does not know where tasks come from, nor what is compared.

Source: the matrix of Lopez-Paz & Ranzato 2017, arXiv:1706.08840; forgetting as Chaudhry et al. 2018, arXiv:1801.10112,
equation 3, define it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.batch import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS, Batch, Pair, collate, collate_causal, length_batches
from training.checkpoint import RunFolder
from training.errors import TrainingConfigError
from training.evaluate import generate_texts
from training.loop import BatchSource, Penalty, Trainer
from training.regularizers import ElasticWeights, KlToReference, L2ToStart, fisher_diagonal, start_of
from training.studies.runs import Learner, Task, scores_of

NO_MITIGATION = "none"
MITIGATIONS = (NO_MITIGATION, "replay", "l2sp", "ewc", "kl")
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Restraint:
    """How forgetting is held back: one of :data:`MITIGATIONS`, its strength, and the examples EWC looks at."""

    mitigation: str = NO_MITIGATION
    strength: float = 0.0
    num_fisher_examples: int = 64

    def __post_init__(self) -> None:
        """Refuse what is no way to forget less.

        Raises:
            TrainingConfigError: an unknown mitigation, or a strength out of its range.
        """
        if self.mitigation not in MITIGATIONS:
            raise TrainingConfigError(f"mitigation is {', '.join(MITIGATIONS)}, not {self.mitigation!r}")
        if self.strength < 0 or (self.mitigation == "replay" and self.strength >= 1):
            raise TrainingConfigError("a strength is 0 or more, and the share that is replayed is below 1")


@dataclass
class Past:
    """What is remembered of the tasks before: their pairs, and what mattered to them."""

    pairs: list[Pair] = field(default_factory=list)
    importance: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Learned:
    """What a sequence came to. A score is ROUGE-L in percent over a task's cases.

    Attributes:
        matrix: R, a row before any training and one after each task, a column a task, held-out ones last.
        switched_off: Before any training and after all of it, the held-out tasks with the adapter switched off; empty
            where there is no adapter, or no such task.
    """

    matrix: list[list[float]]
    switched_off: list[list[float]]


def learn_in_sequence(
    learner: Learner, tasks: Sequence[Task], held_out: Sequence[Task], restraint: Restraint, folder: Path
) -> Learned:
    """Learn the tasks one after another, and measure all of them before the first and after each.

    Raises:
        TrainingError: a task without a pair that fits a batch.
        TrainingRunError: the loss is not finite, or memory has run out.
    """
    model, loop = learner.model, learner.loop
    model.to(torch.bfloat16 if loop.bfloat16 else torch.float32)
    measured, can_be_off = [*tasks, *held_out], isinstance(model, PeftModel) and bool(held_out)
    matrix, past = [_scores(model, learner.tokenizer, measured)], Past()
    switched_off = [_switched_off(learner, held_out)] if can_be_off else []
    for number, task in enumerate(tasks):
        trainer = Trainer(
            model=model.train(),
            config=loop,
            batches=_batches(task.pairs, past, restraint, learner),
            folder=RunFolder(folder / f"{number}-{task.name}"),
            fingerprint="sequence",
            objective=learner.objective,
            penalty=_penalty(learner, past, restraint),
        )
        trainer.run()
        matrix.append(_scores(model, learner.tokenizer, measured))
        _remember(past, task, restraint, learner)
    return Learned(matrix, [*switched_off, _switched_off(learner, held_out)] if can_be_off else [])


def forgetting(matrix: Matrix, columns: Sequence[int]) -> float:
    """Return F: over these tasks, the mean of the best score before the last task less the score after it.

    Raises:
        statistics.StatisticsError: no columns.
    """
    return fmean(max(row[column] for row in matrix[:-1]) - matrix[-1][column] for column in columns)


def _switched_off(learner: Learner, tasks: Sequence[Task]) -> list[float]:
    # PEFT puts a soft prompt before what is generated even while it is disabled, so the base itself is asked.
    with learner.model.disable_adapter():
        return _scores(learner.model.get_base_model(), learner.tokenizer, tasks)


def _scores(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]) -> list[float]:
    model.eval()
    return [
        fmean(
            scores_of(
                generate_texts(model, tokenizer, [case.prompt for case in task.cases], task.max_new_tokens),
                [case.references for case in task.cases],
            )["rougeL"]
        )
        for task in tasks
    ]


def _batches(pairs: Sequence[Pair], past: Past, restraint: Restraint, learner: Learner) -> BatchSource:
    """Give a task's pairs, and among them a share of the pairs of the tasks before, drawn anew each epoch."""
    seed, pad_id = learner.loop.seed, learner.tokenizer.pad_token_id
    join = collate if learner.base.is_encoder_decoder else collate_causal
    share = restraint.strength if restraint.mitigation == "replay" else 0.0
    # The past grows after this task; what it is now is what may be replayed.
    earlier, num_replayed = list(past.pairs), round(len(pairs) * share / (1.0 - share))

    def batches(epoch: int) -> Iterator[Batch]:
        rng = random.Random(f"{seed}/replay/{epoch}")  # noqa: S311 - not for secrets
        again = rng.choices(earlier, k=num_replayed) if earlier else []
        limits = (MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS)
        return length_batches([*pairs, *again], learner.batch_tokens, limits, pad_id, f"{seed}/{epoch}", join=join)

    return batches


def _penalty(learner: Learner, past: Past, restraint: Restraint) -> Penalty | None:
    """Hold the model near what it is now, before the next task."""
    model = learner.model
    if restraint.mitigation == "l2sp":
        return L2ToStart(start_of(model), restraint.strength)
    if restraint.mitigation == "kl":
        reference = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        return KlToReference(reference, learner.objective, restraint.strength)
    if restraint.mitigation == "ewc" and past.importance:
        return ElasticWeights(start_of(model), dict(past.importance), restraint.strength)
    return None


def _remember(past: Past, task: Task, restraint: Restraint, learner: Learner) -> None:
    """Keep a task's pairs, and add up what matters to it.

    One sum over all tasks, about the newest weights: online EWC without decay (Schwarz et al. 2018, arXiv:1805.06370).
    """
    past.pairs.extend(task.pairs)
    if restraint.mitigation != "ewc":
        return
    rng = random.Random(f"{learner.loop.seed}/fisher/{task.name}")  # noqa: S311 - not for secrets
    chosen = rng.sample(task.pairs, min(restraint.num_fisher_examples, len(task.pairs)))
    join = collate if learner.base.is_encoder_decoder else collate_causal
    singles = (join([pair], learner.tokenizer.pad_token_id) for pair in chosen)
    for name, squares in fisher_diagonal(learner.model, singles, learner.objective).items():
        past.importance[name] = past.importance.get(name, torch.zeros(())) + squares


def mean_matrix(matrices: Sequence[Matrix]) -> list[list[float]]:
    """Return the entry-by-entry mean of the seeds' matrices.

    Raises:
        statistics.StatisticsError: no matrices.
    """
    return [[fmean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def summary(matrix: Matrix, num_tasks: int, switched_off: Matrix = ()) -> Mapping[str, float]:
    """Return F on the tasks learned before the last, F on held-out tasks, and what was learned of the last.

    What there is none of is left out: a kind of task, an adapter to switch off.

    Raises:
        Nothing.
    """
    earlier, held_out = range(num_tasks - 1), range(num_tasks, len(matrix[0]))
    figures = {"last_task": matrix[-1][num_tasks - 1]}
    if earlier:
        figures["f_earlier"] = forgetting(matrix, earlier)
    if held_out:
        figures["f_held_out"] = forgetting(matrix, held_out)
    if switched_off:
        figures["f_switched_off"] = forgetting(switched_off, range(len(held_out)))
    return figures
