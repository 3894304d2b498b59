"""`medley train prompt`: a few learned embeddings in front of the encoder's input; nothing else changes.

Source: Lester et al. 2021, arXiv:2104.08691, as PEFT implements it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from transformers import PreTrainedTokenizerFast

from adapters.manifest import AdapterKind
from training.config import PromptRecipe
from training.loop import seed_everything
from training.recipes.adaptation import RunPlaces, fit, load_base


def train_prompt(recipe: PromptRecipe, places: RunPlaces, *, resume: bool) -> None:
    """Train a soft prompt and publish it to `places.out`.

    Raises:
        TrainingError: missing data, or a checkpoint of another run.
        OSError: no base model where the recipe says.
    """
    seed_everything(recipe.loop.seed)
    base, tokenizer = load_base(Path(recipe.base))
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=recipe.prompt.num_virtual_tokens,
        token_dim=base.config.d_model,
    )
    model = get_peft_model(base, config)
    start_from_words(model, tokenizer, recipe.prompt.init_text)
    fit(model, tokenizer, recipe, places, kind=AdapterKind.PROMPT, resume=resume)


@torch.no_grad()
def start_from_words(model: PeftModel, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Set the soft prompt's rows to the embeddings of `text`'s tokens, repeated until every row is set.

    Done here, not by PEFT's own text start, which would have to find the tokenizer by name.

    Raises:
        Nothing.
    """
    rows = model.prompt_encoder["default"].embedding.weight
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows.copy_(model.get_base_model().shared.weight[ids.repeat(len(rows) // len(ids) + 1)[: len(rows)]])
