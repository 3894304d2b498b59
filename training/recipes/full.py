"""`medley train full`: instruction fine-tuning of every weight of the base.

The loss is the cross-entropy of the completion alone. The result is a base of its own.

Source: Chung et al. 2022, arXiv:2210.11416.
"""

from __future__ import annotations

from training.base_model import load_base
from training.config import AdapterRecipe
from training.methods import FullMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import BaseForm


def prepare_full(recipe: AdapterRecipe[FullMethod]) -> Prepared:
    """Leave every weight trainable.

    Raises:
        TrainingConfigError: no such base.
    """
    base = load_base(recipe.base)
    model = base.model.requires_grad_(requires_grad=True)
    return Prepared(base, model, BaseForm(base.tokenizer), "full fine-tuning, every weight")
