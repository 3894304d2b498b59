"""Prefix tuning: keys and values in front of those of the decoder's self-attention, as PEFT runs it on T5.

PEFT stores one row of 2·L·H·K numbers a virtual token: L pairs of key and value. For an encoder-decoder it writes that
list of 2L entries twice in a row and gives each layer the next four, of which its self-attention takes the first two
and cross-attention none. So layer j has entries 4j and 4j+1, counted round the list, and half of what was stored is
never used: odd, but what the adapter was trained with. Any thread.

Shapes: P virtual tokens, L decoder layers, H heads, K head width.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/peft_model.py (``get_prompt``); arXiv:2101.00190.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import PrefixWeights
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, base_model_of, count, refuse_other_fields
from adapters.peft_families.plan import PromptPlan
from adapters.peft_families.soft_prompt import ROWS, SIZE_FIELDS, check_names, check_task_type
from adapters.peft_tensors import TensorReader, matrix_shape
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

# The network behind prefix_projection is folded away at saving.
_FIELDS = ABOUT_ORIGIN | SIZE_FIELDS | {"encoder_hidden_size", "prefix_projection", "init_weights"}
_NUM_ENTRIES_PER_LAYER = 4


@dataclass(frozen=True)
class Prefix:
    """What sizes a prefix.

    Attributes:
        task_type: The kind of model it was trained for, as the config says it, or None.
        num_copies: How often PEFT writes it for the base, by ``num_transformer_submodules``.
        num_virtual_tokens: P.
        num_layers: L.
        num_heads: H.
        width: H·K.
        base_model: Name of the base, for people.
    """

    task_type: object
    num_copies: object
    num_virtual_tokens: int
    num_layers: int
    num_heads: int
    width: int
    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is missing or out of range.
            UnsupportedAdapterError: If it switches on something not computed.
        """
        refuse_other_fields(raw, _FIELDS)
        return cls(
            task_type=raw.get("task_type"),
            num_copies=raw.get("num_transformer_submodules"),
            num_virtual_tokens=count(raw.get("num_virtual_tokens"), "num_virtual_tokens"),
            num_layers=count(raw.get("num_layers"), "num_layers"),
            num_heads=count(raw.get("num_attention_heads"), "num_attention_heads"),
            width=count(raw.get("token_dim"), "token_dim"),
            base_model=base_model_of(raw),
        )

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> PromptPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If there are other tensors, or the rows contradict the config.
            UnsupportedAdapterError: If it or the base is for another kind of model than an encoder-decoder.
            WrongBaseError: If the base's decoder has other layers or heads.
        """
        if not base.is_encoder_decoder:
            raise UnsupportedAdapterError("a prefix is not served on a decoder-only base; train a soft prompt")
        check_task_type(self.task_type, base)
        if self.num_copies != 2:
            raise UnsupportedAdapterError(
                "a prefix needs num_transformer_submodules 2: PEFT runs no other on an encoder-decoder"
            )
        check_names(entries, {ROWS}, "PREFIX_TUNING")
        stated = (self.num_virtual_tokens, 2 * self.num_layers * self.width)
        if matrix_shape(entries, ROWS) != stated:
            found = list(entries[ROWS].shape)
            raise InvalidAdapterError(f"{ROWS} has shape {found}, but {CONFIG_FILE} says {list(stated)}")
        needed = (base.num_decoder_layers, base.num_heads, base.num_heads * base.d_kv)
        if (self.num_layers, self.num_heads, self.width) != needed:
            raise WrongBaseError(
                f"the prefix is for {self.num_layers} layers of {self.num_heads} heads, token_dim {self.width}; "
                f"{show(base.model_id)} needs num_layers {needed[0]}, num_attention_heads {needed[1]}, "
                f"token_dim {needed[2]}"
            )
        load = partial(_load, self.num_layers, self.num_heads)
        return PromptPlan(AdapterKind.PREFIX, self.num_virtual_tokens, load)


def _load(num_layers: int, num_heads: int, reader: TensorReader) -> PrefixWeights:
    rows = reader.load(ROWS)
    entries = rows.reshape(len(rows), 2 * num_layers, num_heads, -1).swapaxes(0, 1)
    first = _NUM_ENTRIES_PER_LAYER * np.arange(num_layers) % (2 * num_layers)
    return PrefixWeights(keys=entries[first], values=entries[first + 1])
