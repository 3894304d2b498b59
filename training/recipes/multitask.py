"""`medley train multitask`: a LoRA, or every weight, on several data sets at once.

Each task is as frequent as it is large, up to a cap, so that a large one does not drown the others; the mixing is
`training.recipes.adaptation.Tasks.epoch`.

Source: Wei et al. 2021, arXiv:2109.01652; Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.
"""

from __future__ import annotations

from dataclasses import replace

from training.config import AdapterRecipe
from training.methods import FullMethod, MultitaskMethod
from training.recipes.adaptation import Prepared
from training.recipes.full import prepare_full
from training.recipes.lora import prepare_lora


def prepare_multitask(recipe: AdapterRecipe[MultitaskMethod]) -> Prepared:
    """Prepare the method underneath.

    Raises:
        TrainingConfigError: no such base.
    """
    method = recipe.method
    if method.under == "full":
        prepared = prepare_full(replace(recipe, method=FullMethod()))
    else:
        prepared = prepare_lora(replace(recipe, method=method.lora))
    about = f"{prepared.about}; {1 + len(method.tasks)} tasks in proportion to their size, up to {method.cap}"
    return replace(prepared, about=about)
