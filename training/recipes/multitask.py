"""`medley train multitask`: a LoRA, or every weight, on several data sources at once.

Each source is as frequent as it is large, up to the mixture's cap, so that a large one does not drown the others; the
mixing is `training.data.mixing`.

Source: Wei et al. 2021, arXiv:2109.01652; Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.
"""

from __future__ import annotations

from dataclasses import replace

from training.config import AdapterRecipe
from training.errors import TrainingConfigError
from training.methods import FullMethod, MultitaskMethod
from training.recipes.adaptation import Prepared
from training.recipes.full import prepare_full
from training.recipes.lora import prepare_lora


def prepare_multitask(recipe: AdapterRecipe[MultitaskMethod]) -> Prepared:
    """Prepare the method underneath.

    Raises:
        TrainingConfigError: no such base, or one source only.
    """
    num_sources, cap = len(recipe.data.sources), recipe.data.mixture.cap
    if num_sources < 2:
        raise TrainingConfigError("multitask needs two or more data.sources; with one, train by another method")
    if recipe.method.under == "full":
        prepared = prepare_full(replace(recipe, method=FullMethod()))
    else:
        prepared = prepare_lora(replace(recipe, method=recipe.method.lora))
    limit = f", up to {cap} examples each" if cap else ""
    return replace(prepared, about=f"{prepared.about}; {num_sources} sources in proportion to their size{limit}")
