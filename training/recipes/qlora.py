"""`medley train qlora`: a LoRA on a base held in 4 bits, so that a large base fits while it is adapted.

The base's linear layers are kept as NF4, 64 weights to a constant, and the constants in 8 bits, 256 to a constant of
theirs; they are turned back layer by layer as they are needed, and gradients go to A and B alone. What is kept is a
plain LoRA, measured and served over the base as it was. `loop.paged_optimizer` lets its moments leave the GPU.

Source: Dettmers et al. 2023, arXiv:2305.14314, as bitsandbytes and PEFT implement it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import BitsAndBytesConfig

from training.base_model import load_base
from training.config import AdapterRecipe
from training.errors import TrainingConfigError
from training.methods import QloraMethod
from training.recipes.adaptation import Prepared
from training.recipes.lora import with_lora


def prepare_qlora(recipe: AdapterRecipe[QloraMethod]) -> Prepared:
    """Load the base in 4 bits and put a LoRA on it.

    Raises:
        TrainingConfigError: no such base, or bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError as error:
        raise TrainingConfigError("qlora needs bitsandbytes: pip install 'medley[quantization]'") from error
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=recipe.method.double_quantization,
        bnb_4bit_compute_dtype=torch.bfloat16 if recipe.loop.bfloat16 else torch.float32,
    )
    base = load_base(recipe.base, quantization=config)
    for module in base.model.modules():
        if isinstance(module, Linear4bit):
            # On some CPUs an evaluation would pack the weight anew, for inference alone and for good.
            module.support_avx512bf16_for_cpu = False
    prepared = with_lora(base, recipe.method)
    return replace(prepared, about=f"Q{prepared.about}, trained over the base in NF4")
