"""`medley train prefix`: learned keys and values in front of those of the decoder's self-attention.

On an encoder-decoder PEFT keeps twice what it reads; the other half is never trained (see docs/adapters.md).

Source: Li & Liang 2021, arXiv:2101.00190, as PEFT implements it.
"""

from __future__ import annotations

from peft import PrefixTuningConfig, get_peft_model

from training.base_model import load_base
from training.config import AdapterRecipe
from training.errors import TrainingConfigError
from training.methods import PrefixMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import PeftForm


def prepare_prefix(recipe: AdapterRecipe[PrefixMethod]) -> Prepared:
    """Put a prefix before the decoder of an encoder-decoder.

    Raises:
        TrainingConfigError: no such base, or a decoder-only one, on which no server takes a prefix.
    """
    base, method = load_base(recipe.base), recipe.method
    if not base.is_encoder_decoder:
        raise TrainingConfigError("a prefix is not served on a decoder-only base; train a soft prompt by `prompt`")
    shape = base.model.config
    config = PrefixTuningConfig(
        task_type=base.task_type,
        num_virtual_tokens=method.num_virtual_tokens,
        # PEFT divides it by the heads; the base's width would not give the heads' own on every T5.
        token_dim=shape.num_heads * shape.d_kv,
        num_attention_heads=shape.num_heads,
        num_layers=shape.num_decoder_layers,
        prefix_projection=method.projection,
        encoder_hidden_size=method.hidden_size or base.width,
    )
    about = f"prefix tuning, {method.num_virtual_tokens} virtual tokens"
    return Prepared(base, get_peft_model(base.model, config), PeftForm(base), about)
