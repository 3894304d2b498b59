"""What all methods share: read the data, train what a method left trainable, keep the best, measure, publish.

It does not know which method it trains; a method hands it a :class:`Prepared` model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.scoring import RougeScorer
from training.answers import FolderAnswers, answers_of_model
from training.base_model import Base
from training.batch import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS, Batch, collate, collate_causal, length_batches
from training.card import AdapterFacts, Sample, adapter_card
from training.checkpoint import RunFolder
from training.config import AdapterRecipe, fingerprint
from training.curve import draw_loss_curve
from training.data.adaptation import Case, pairs_by_task
from training.data.examples import load_examples
from training.data.instructions import extract_answer
from training.data.mixing import mixture_epoch
from training.evaluate import lead_3
from training.loop import Penalty, Trainer
from training.methods import Method
from training.model import speed_up
from training.objective import causal_logits, seq2seq_logits
from training.recipes.forms import Form, next_step

SCORES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class RunPlaces:
    """Folders of one run: the corpora, scratch (checkpoints and log), and where the result goes."""

    data: Path
    run: Path
    out: Path


@dataclass(frozen=True)
class Prepared:
    """What a method makes of a base.

    Attributes:
        base: The base, for its tokenizer, kind and place.
        model: What is run; only what is to be trained requires a gradient.
        form: How the result is kept.
        about: What the card says the method is, in a few words.
    """

    base: Base
    model: torch.nn.Module
    form: Form
    about: str


def fit(
    recipe: AdapterRecipe[Method],
    prepared: Prepared,
    places: RunPlaces,
    *,
    resume: bool,
    from_step: int | None = None,
    penalty: Penalty | None = None,
) -> None:
    """Train what `prepared` left trainable; publish its best state to `places.out`, measured, with manifest and card.

    Args:
        recipe: what to train on, and how.
        prepared: by the method.
        places: folders of the run.
        resume: go on from a checkpoint of the run folder.
        from_step: which one; None for the latest.
        penalty: a term beside the cross-entropy, or None.

    Raises:
        TrainingError: missing data, a checkpoint of another run, no finite loss, no memory.
    """
    base, model, form = prepared.base, prepared.model, prepared.form
    splits = load_examples(recipe.data, places.data, base.tokenizer, prompt_template=recipe.adapter.prompt_template)
    pairs = pairs_by_task(splits.train, base.pairs(splits.train))
    scorer = RougeScorer()
    speed_up(model)

    def batches(epoch: int) -> Iterator[Batch]:
        limits, seed = (MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS), f"{recipe.loop.seed}/{epoch}"
        join = collate if base.is_encoder_decoder else collate_causal
        drawn = [pair for case in mixture_epoch(pairs, recipe.data.mixture, epoch) for pair in case]
        return length_batches(drawn, recipe.batch_tokens, limits, base.tokenizer.pad_token_id, seed, join=join)

    def evaluate(_step: int) -> dict[str, float]:
        answers = answers_of_model(base, model, [case.prompt for case in splits.held_out], recipe.data.max_new_tokens)
        return measure(answers_meant(answers, splits.held_out, recipe), splits.held_out, scorer)

    trainer = Trainer(
        model=model,
        config=recipe.loop,
        batches=batches,
        folder=RunFolder(places.run),
        fingerprint=fingerprint(recipe),
        objective=seq2seq_logits if base.is_encoder_decoder else causal_logits,
        penalty=penalty,
        evaluate=evaluate,
        score=lambda figures: sum(figures.values()),
        export=lambda folder: form.save(model, folder),
        title=recipe.adapter.name,
    )
    if resume:
        trainer.resume(from_step)
    state = trainer.run()
    shutil.copytree(trainer.folder.best(state.best_step), places.out, dirs_exist_ok=True)
    answers = answers_of_all(recipe, prepared, places.out, splits.validation)
    table = {name: measure(texts, splits.validation, scorer) for name, texts in answers.items()}
    form.label(recipe.adapter, table["adapter"], places.out)
    facts = AdapterFacts(
        recipe=recipe,
        about=prepared.about,
        next_step=next_step(form, recipe.adapter, Path("FOLDER")),
        num_trainable=sum(parameter.numel() for parameter in trainer.trainable.values()),
        num_train=len(splits.train),
        num_validation=len(splits.validation),
        num_steps=state.step,
        num_tokens=state.num_tokens,
        elapsed_s=state.elapsed_s,
        samples=samples_of(splits.validation[: recipe.adapter.num_samples], answers["adapter"]),
    )
    (places.out / "card.md").write_text(adapter_card(facts, table), encoding="utf-8")
    draw_loss_curve(trainer.folder.log, places.run / "loss.png", recipe.adapter.name)


def measure(answers: Sequence[str], cases: Sequence[Case], scorer: RougeScorer) -> dict[str, float]:
    """Return ROUGE-1/2/L (percent) of the answers to `cases`.

    Raises:
        ValueError: no cases.
    """
    scores = scorer.score_corpus(answers, [case.references for case in cases])
    return {name: round(scores[name], 2) for name in SCORES}


def samples_of(cases: Sequence[Case], answers: Sequence[str]) -> list[Sample]:
    """Return the first answers, as many as there are cases, each beside its case's first reference.

    Raises:
        Nothing.
    """
    return [Sample(case.references[0], answer) for case, answer in zip(cases, answers, strict=False)]


def answers_of_all(
    recipe: AdapterRecipe[Method], prepared: Prepared, result: Path, cases: Sequence[Case]
) -> dict[str, list[str]]:
    """Return the answers of the published result, of the base alone with the same prompts, and of LEAD-3.

    The files are loaded afresh, in float32, as the server would serve them.

    Raises:
        EvaluationError: the base cannot be loaded.
        AdapterError: the adapter's files are broken.
    """
    prompts = [case.prompt for case in cases]
    with FolderAnswers(prepared.base.folder, recipe.data.max_new_tokens) as answers:
        adapted, plain = prepared.form.answer(result, prompts, answers), answers.answer([], prompts)
    by_name = {"adapter": adapted, "base": plain, "lead-3": [lead_3(case.source) for case in cases]}
    return {name: answers_meant(texts, cases, recipe) for name, texts in by_name.items()}


def answers_meant(texts: Sequence[str], cases: Sequence[Case], recipe: AdapterRecipe[Method]) -> list[str]:
    """Return what of each text is compared with references: all of it, or of a chain of thought the answer alone.

    Raises:
        Nothing.
    """
    if not recipe.data.instruction.chain_of_thought:
        return list(texts)
    return [extract_answer(text, case.choices) for text, case in zip(texts, cases, strict=True)]
