"""One run of any method: seed, prepare, fit. The table of methods is here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training.config import AdapterRecipe
from training.errors import PushError, TrainingConfigError
from training.loop import Penalty, seed_everything
from training.methods import Method, method_name
from training.recipes.adaptation import Prepared, RunPlaces, fit
from training.recipes.bottleneck import prepare_bottleneck
from training.recipes.forms import next_step
from training.recipes.full import prepare_full
from training.recipes.ia3 import prepare_ia3
from training.recipes.lora import prepare_lora
from training.recipes.multitask import prepare_multitask
from training.recipes.p_tuning import prepare_p_tuning
from training.recipes.prefix import prepare_prefix
from training.recipes.prompt import prepare_prompt
from training.recipes.qlora import prepare_qlora
from training.recipes.selective import prepare_selective

_PREPARE: Mapping[str, Callable[[AdapterRecipe[Any]], Prepared]] = {
    "full": prepare_full,
    "lora": prepare_lora,
    "qlora": prepare_qlora,
    "prompt": prepare_prompt,
    "p-tuning": prepare_p_tuning,
    "prefix": prepare_prefix,
    "ia3": prepare_ia3,
    "selective": prepare_selective,
    "bottleneck": prepare_bottleneck,
    "multitask": prepare_multitask,
}


def prepare(recipe: AdapterRecipe[Method]) -> Prepared:
    """Return the base with what the recipe's method trains on it, begun from the recipe's seed.

    Raises:
        TrainingConfigError: no such base, or it does not fit the method.
    """
    seed_everything(recipe.loop.seed)
    try:
        return _PREPARE[method_name(recipe.method)](recipe)
    except ValueError as error:
        raise TrainingConfigError(f"the method does not fit the base: {error}") from error


def train_adapter(
    recipe: AdapterRecipe[Method],
    places: RunPlaces,
    *,
    resume: bool,
    from_step: int | None = None,
    penalty: Penalty | None = None,
    to_be_pushed: bool = False,
) -> Prepared:
    """Train by the recipe's method and publish the result to `places.out`; return what was trained.

    Args:
        recipe: what to train, on what, how.
        places: folders of the run.
        resume: go on from a checkpoint of the run folder.
        from_step: which one; None for the latest.
        penalty: a term beside the cross-entropy, or None.
        to_be_pushed: refuse, before any training, what no running server would take.

    Raises:
        TrainingError: no such base, missing data, a checkpoint of another run, no finite loss, no memory.
    """
    prepared = prepare(recipe)
    if to_be_pushed and not prepared.form.can_be_pushed:
        raise PushError(f"--push: {next_step(prepared.form, recipe.adapter, places.out)}")
    fit(recipe, prepared, places, resume=resume, from_step=from_step, penalty=penalty)
    return prepared
