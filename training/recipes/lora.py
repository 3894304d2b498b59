"""`medley train lora`: low-rank updates on every linear layer of the frozen base.

Source: Hu et al. 2021, arXiv:2106.09685, as PEFT implements it.
"""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, TaskType, get_peft_model

from adapters.manifest import AdapterKind
from training.config import LoraRecipe
from training.loop import seed_everything
from training.recipes.adaptation import RunPlaces, fit, load_base


def train_lora(recipe: LoraRecipe, places: RunPlaces, *, resume: bool) -> None:
    """Train a LoRA and publish it to `places.out`.

    Raises:
        TrainingError: missing data, or a checkpoint of another run.
        OSError: no base model where the recipe says.
    """
    seed_everything(recipe.loop.seed)
    base, tokenizer = load_base(Path(recipe.base))
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        target_modules=list(recipe.lora.target_modules),
    )
    fit(get_peft_model(base, config), tokenizer, recipe, places, kind=AdapterKind.LORA, resume=resume)
