"""What LoRA and prompt tuning share: load the base, train what PEFT left trainable, keep the best, measure, publish.

It does not know which PEFT method it trains.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from adapters.base_spec import read_base_spec
from adapters.manifest import AdapterKind, AdapterManifest
from adapters.scoring import RougeScorer
from training.answers import FolderAnswers, answers_of_model
from training.batch import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS, Batch, length_batches
from training.card import AdapterFacts, adapter_card
from training.config import LoraRecipe, PromptRecipe, fingerprint
from training.curve import draw_loss_curve
from training.data.adaptation import Case, load_splits, training_pairs
from training.evaluate import lead_3
from training.export import export_adapter, write_manifest
from training.loop import RunFolder, Trainer
from training.model import speed_up

SCORES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class RunPlaces:
    """Folders of one adapter run: the corpora, scratch (checkpoints and log), and where the adapter goes."""

    data: Path
    run: Path
    out: Path


def load_base(folder: Path) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return the frozen base in float32, and its tokenizer.

    Raises:
        OSError: no model in `folder`.
    """
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.requires_grad_(requires_grad=False), PreTrainedTokenizerFast.from_pretrained(folder)


def fit(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: LoraRecipe | PromptRecipe,
    places: RunPlaces,
    *,
    kind: AdapterKind,
    resume: bool,
) -> None:
    """Train `model`'s adapter, publish its best state to `places.out`, measured, with manifest and card.

    Raises:
        TrainingError: missing data, or a checkpoint of another run.
    """
    splits = load_splits(recipe.data, recipe.adapter.prompt_template, places.data)
    pairs = training_pairs(splits.train, tokenizer)
    scorer = RougeScorer()
    speed_up(model)
    best = places.run / "best"

    def batches(epoch: int) -> Iterator[Batch]:
        limits, seed = (MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS), f"{recipe.loop.seed}/{epoch}"
        return length_batches(pairs, recipe.batch_tokens, limits, tokenizer.pad_token_id, seed)

    def evaluate(_step: int) -> dict[str, float]:
        prompts = [case.prompt for case in splits.held_out]
        answers = answers_of_model(model, tokenizer, recipe.base, prompts, recipe.data.max_new_tokens)
        return measure(answers, splits.held_out, scorer)

    def keep(_step: int, figures: dict[str, float]) -> float:
        total = sum(figures.values())
        if total > trainer.state.best:
            export_adapter(model, best, Path(recipe.base).name)
        return total

    trainer = Trainer(
        model=model,
        config=recipe.loop,
        batches=batches,
        folder=RunFolder(places.run),
        fingerprint=fingerprint(recipe),
        evaluate=evaluate,
        keep=keep,
    )
    if resume:
        trainer.resume()
    state = trainer.run()
    shutil.copytree(best, places.out, dirs_exist_ok=True)
    table = compare(places.out, recipe, splits.validation, scorer)
    write_manifest(_manifest(recipe, kind, table["adapter"]), places.out)
    facts = AdapterFacts(
        recipe, len(splits.train), len(splits.validation), state.step, state.num_tokens, state.elapsed_s
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


def compare(
    adapter: Path, recipe: LoraRecipe | PromptRecipe, cases: Sequence[Case], scorer: RougeScorer
) -> dict[str, dict[str, float]]:
    """Measure the published adapter, the base alone with the same prompts, and LEAD-3, on the same cases.

    The files are loaded afresh, in float32, as the server would serve them.

    Raises:
        EvaluationError: the base cannot be loaded.
        AdapterError: the adapter's files are broken.
    """
    prompts = [case.prompt for case in cases]
    with FolderAnswers(recipe.base, recipe.data.max_new_tokens) as answers:
        adapted, plain = answers.answer([adapter], prompts), answers.answer([], prompts)
    by_name = {"adapter": adapted, "base": plain, "lead-3": [lead_3(case.dialogue) for case in cases]}
    return {name: measure(texts, cases, scorer) for name, texts in by_name.items()}


def _manifest(recipe: LoraRecipe | PromptRecipe, kind: AdapterKind, scores: dict[str, float]) -> AdapterManifest:
    spec = read_base_spec(Path(recipe.base))
    lora = recipe.lora if isinstance(recipe, LoraRecipe) else None
    return AdapterManifest(
        name=recipe.adapter.name,
        kind=kind,
        base_model=spec.model_id,
        base_fingerprint=spec.fingerprint,
        base_weights_digest=spec.weights_digest or "",
        prompt_template=recipe.adapter.prompt_template,
        rank=lora.rank if lora else 0,
        target_modules=lora.target_modules if lora else (),
        num_virtual_tokens=0 if isinstance(recipe, LoraRecipe) else recipe.prompt.num_virtual_tokens,
        task=recipe.adapter.task,
        licence=recipe.adapter.licence,
        description=recipe.adapter.description,
        scores=scores,
    )
