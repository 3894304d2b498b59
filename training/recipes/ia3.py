"""`medley train ia3`: one learned vector a layer, times keys, values and what goes through the feed-forward layer.

Source: Liu et al. 2022, arXiv:2205.05638, as PEFT implements it.
"""

from __future__ import annotations

from peft import IA3Config, get_peft_model

from training.base_model import load_base
from training.config import AdapterRecipe
from training.methods import Ia3Method
from training.recipes.adaptation import Prepared
from training.recipes.forms import PeftForm


def prepare_ia3(recipe: AdapterRecipe[Ia3Method]) -> Prepared:
    """Put the vectors, all ones, on the base.

    Raises:
        TrainingConfigError: no such base.
    """
    base, method = load_base(recipe.base), recipe.method
    config = IA3Config(
        task_type=base.task_type,
        target_modules=list(method.target_modules) or None,
        feedforward_modules=list(method.feedforward_modules) or None,
    )
    on = ", ".join(method.target_modules) or "keys, values and the feed-forward layer's input"
    return Prepared(base, get_peft_model(base.model, config), PeftForm(base), f"IA3 on {on}")
