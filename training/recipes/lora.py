"""`medley train lora`: low-rank updates beside linear layers of the frozen base.

With `rslora` scaled by the root of the rank, with `dora` with sizes of their own.

Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732; Liu et al. 2024, arXiv:2402.09353; all
as PEFT implements them.
"""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

from training.base_model import Base, load_base
from training.config import AdapterRecipe
from training.methods import ALL_LINEAR, LoraMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import PeftForm

_INITS = {"default": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def prepare_lora(recipe: AdapterRecipe[LoraMethod]) -> Prepared:
    """Put a LoRA on the base in float32.

    Raises:
        TrainingConfigError: no such base, or no such layer in it.
    """
    return with_lora(load_base(recipe.base), recipe.method)


def with_lora(base: Base, method: LoraMethod) -> Prepared:
    """Put a LoRA on a loaded base.

    Raises:
        ValueError: no layer of the base has one of the names.
    """
    model = get_peft_model(base.model, lora_config(base, method))
    kind = "DoRA" if method.dora else "rsLoRA" if method.rslora else "LoRA"
    about = f"{kind}, rank {method.rank}, alpha {method.alpha}, on {', '.join(method.target_modules)}"
    return Prepared(base, model, PeftForm(base), about)


def lora_config(base: Base, method: LoraMethod) -> LoraConfig:
    """Return PEFT's config of a LoRA.

    Raises:
        Nothing.
    """
    return LoraConfig(
        task_type=base.task_type,
        r=method.rank,
        lora_alpha=method.alpha,
        target_modules=ALL_LINEAR if method.target_modules == (ALL_LINEAR,) else list(method.target_modules),
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        lora_dropout=method.dropout,
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights=_INITS[method.init],
    )
