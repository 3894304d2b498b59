"""Prefixes: learned keys and values in front of a row's own past, in every decoder layer's self-attention.

A prefix of P virtual tokens takes the row's first P places in the cache, so the row's first token stands at position P:
attention and T5's relative positions treat it as any other past. The encoder has none.

Legend: P virtual tokens, H heads, K head width. Any thread.

Source:
    arXiv:2101.00190 (prefix tuning).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix on the device, in the serving dtype.

    Attributes:
        keys: (layers, P, H, K).
        values: (layers, P, H, K).
    """

    keys: Tensor
    values: Tensor
