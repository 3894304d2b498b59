"""`medley train selective`: some of the base's own tensors, and no other.

Norms alone are an adapter that a server takes (PEFT's LayerNorm tuning); biases or the last layers make a base of
their own. T5's linear layers have no biases: its biases are those of relative positions.

Source: biases: Ben Zaken et al. 2021, arXiv:2106.10199; norms: Zhao et al. 2023, arXiv:2312.11420.
"""

from __future__ import annotations

import re

from peft import LNTuningConfig, get_peft_model

from training.base_model import Base, load_base
from training.config import AdapterRecipe
from training.errors import TrainingConfigError
from training.methods import SelectiveMethod
from training.peft_warnings import without_false_alarms
from training.recipes.adaptation import Prepared
from training.recipes.forms import BaseForm, PeftForm

_BIAS = re.compile(r".*(\.bias|\.relative_attention_bias\.weight)")
# A block's place in its stack: `decoder.block.2.` of T5, `model.layers.2.` of Llama and its kin.
_BLOCK = re.compile(r"(?P<stack>.*\b(?:block|layers))\.(?P<number>\d+)\..*")


def prepare_selective(recipe: AdapterRecipe[SelectiveMethod]) -> Prepared:
    """Leave the tensors of one kind trainable.

    Raises:
        TrainingConfigError: no such base, or it has no tensor of that kind.
    """
    base, method = load_base(recipe.base), recipe.method
    if method.tensors == "norms":
        with without_false_alarms():
            model = get_peft_model(base.model, LNTuningConfig(task_type=base.task_type))
        return Prepared(base, model, PeftForm(base), "selective tuning of the norms")
    names = _biases(base) if method.tensors == "biases" else _last_layers(base, method.num_layers)
    if not names:
        raise TrainingConfigError(f"{base.name} has no {method.tensors} to train")
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(requires_grad=name in names)
    what = "biases" if method.tensors == "biases" else f"last layers, {method.num_layers} of each stack"
    return Prepared(base, base.model, BaseForm(base.tokenizer), f"selective tuning of the {what}")


def _biases(base: Base) -> set[str]:
    return {name for name, _ in base.model.named_parameters() if _BIAS.fullmatch(name)}


def _last_layers(base: Base, num_layers: int) -> set[str]:
    found = {name: match for name, _ in base.model.named_parameters() if (match := _BLOCK.fullmatch(name))}
    depths: dict[str, int] = {}
    for match in found.values():
        depths[match["stack"]] = max(depths.get(match["stack"], 0), int(match["number"]) + 1)
    return {name for name, match in found.items() if int(match["number"]) >= depths[match["stack"]] - num_layers}
