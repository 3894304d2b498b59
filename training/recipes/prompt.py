"""`medley train prompt`: a few learned embeddings in front of the text; nothing else changes.

Source: Lester et al. 2021, arXiv:2104.08691, as PEFT implements it.
"""

from __future__ import annotations

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor

from training.base_model import Base, load_base
from training.config import AdapterRecipe
from training.methods import PromptMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import PeftForm

# Tokens of a vocabulary stand by how common they are; the paper draws from as many.
_NUM_COMMON_TOKENS = 5000


def prepare_prompt(recipe: AdapterRecipe[PromptMethod]) -> Prepared:
    """Put a soft prompt before the base.

    Raises:
        TrainingConfigError: no such base.
    """
    base, method = load_base(recipe.base), recipe.method
    config = PromptTuningConfig(
        task_type=base.task_type,
        num_virtual_tokens=method.num_virtual_tokens,
        token_dim=base.width,
        # PEFT would keep a second set of rows for the decoder of an encoder-decoder, and never read it.
        num_transformer_submodules=1,
    )
    model = get_peft_model(base.model, config)
    if method.init != "random":
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.copy_(first_rows(base, method))
    about = f"prompt tuning, {method.num_virtual_tokens} virtual tokens, begun as {method.init}"
    return Prepared(base, model, PeftForm(base), about)


def first_rows(base: Base, method: PromptMethod) -> Tensor:
    """Return the rows [P, D] a soft prompt begins as: embeddings of the base's own vocabulary.

    Done here, not by PEFT's own text start, which would have to find the tokenizer by name.

    Raises:
        Nothing.
    """
    table = base.model.get_input_embeddings().weight
    wanted = method.num_virtual_tokens
    if method.init == "text":
        ids = torch.tensor(_ids(base, method.init_text))
        return table[ids.repeat(wanted // len(ids) + 1)[:wanted]]
    drawn = table[_common_tokens(base)[:wanted]]
    labels = method.class_labels if method.init == "class-labels" else ()
    for row, label in enumerate(labels):
        # A label of several tokens gets their mean.
        drawn[row] = table[_ids(base, label)].mean(dim=0)
    return drawn


def _common_tokens(base: Base) -> Tensor:
    """Return the ids of the commonest ordinary tokens, in random order."""
    special = set(base.tokenizer.all_special_ids)
    ids = [token for token in range(len(base.tokenizer)) if token not in special][:_NUM_COMMON_TOKENS]
    return torch.tensor(ids)[torch.randperm(len(ids))]


def _ids(base: Base, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]
