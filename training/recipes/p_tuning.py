"""`medley train p-tuning`: a soft prompt whose rows come out of a small network while they are trained.

Only the rows are kept, so it is served like any soft prompt.

Source: Liu et al. 2021, arXiv:2103.10385, as PEFT implements it.
"""

from __future__ import annotations

from peft import PromptEncoderConfig, get_peft_model

from training.base_model import load_base
from training.config import AdapterRecipe
from training.methods import PTuningMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import PeftForm


def prepare_p_tuning(recipe: AdapterRecipe[PTuningMethod]) -> Prepared:
    """Put the network before the base.

    Raises:
        TrainingConfigError: no such base.
    """
    base, method = load_base(recipe.base), recipe.method
    config = PromptEncoderConfig(
        task_type=base.task_type,
        num_virtual_tokens=method.num_virtual_tokens,
        token_dim=base.width,
        encoder_reparameterization_type=method.network.upper(),
        encoder_hidden_size=method.hidden_size or base.width,
        # PEFT would keep a second set of rows for the decoder of an encoder-decoder, and never read it.
        num_transformer_submodules=1,
    )
    about = f"p-tuning, {method.num_virtual_tokens} virtual tokens out of an {method.network.upper()}"
    return Prepared(base, get_peft_model(base.model, config), PeftForm(base), about)
