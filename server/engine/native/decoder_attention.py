"""Attention of a decoder step over the cache: each row's newest token against its own past and its encoder's output.

A :class:`DecoderStep` says where each row stands; :func:`prepare` makes what all layers share and returns one of two
ways with one face: compiled kernels where the processor can run them, else torch. The kernels read each row as far as
it goes; torch reads all rows as far as the longest and masks the rest. Knows no weights. Step thread only.

Legend: B rows, H heads, K head width, L encoder positions, T decoder positions; N = B·H.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from server.engine.native.kernels import cpu
from server.engine.native.kv_cache import KVCache
from server.engine.native.layers.relative_position import DecoderBias


@dataclass(frozen=True, slots=True)
class DecoderStep:
    """What one decoder step is about.

    Attributes:
        token_B: Newest token of each row.
        position_B: Decoder position of that token.
        num_positions: One past the largest position.
        length_B: Encoder positions of each row.
        num_encoder: The largest of them.
        cross_mask_NL1: :meth:`KVCache.cross_mask` of these rows; None where no mask is needed: rows of equal length, or
            kernels, which know each row's length.
    """

    token_B: Tensor
    position_B: Tensor
    num_positions: int
    length_B: Tensor
    num_encoder: int
    cross_mask_NL1: Tensor | None


class StepAttention(Protocol):
    """The attention of one decoder step, layer by layer."""

    def own(self, layer: int, qkv_B3HK: Tensor) -> Tensor:
        """Store the newest keys and values, attend to the row's past and itself; return (B, H·K)."""
        ...

    def cross(self, layer: int, q_BHK: Tensor) -> Tensor:
        """Attend to the row's encoder positions; return (B, H·K)."""
        ...


def prepare(cache: KVCache, bias: DecoderBias, step: DecoderStep) -> StepAttention:
    """Return the attention of a step over the cache's first rows."""
    if cache.has_kernels:
        return _KernelAttention(cache, bias.oldest_first_HT, step.position_B, step.length_B)
    return _TorchAttention(
        cache,
        num_rows=len(step.position_B),
        num_positions=step.num_positions,
        num_encoder=step.num_encoder,
        bias_NT1=bias(step.position_B, step.num_positions).to(cache.dtype),
        place_N=cache.places(step.position_B),
        cross_mask_NL1=step.cross_mask_NL1,
    )


@dataclass(frozen=True, slots=True)
class _KernelAttention:
    cache: KVCache
    bias_HT: Tensor
    position_B: Tensor
    length_B: Tensor

    def own(self, layer: int, qkv_B3HK: Tensor) -> Tensor:
        return cpu.self_attention(qkv_B3HK, *self.cache.own_slots(layer), self.bias_HT, self.position_B)

    def cross(self, layer: int, q_BHK: Tensor) -> Tensor:
        return cpu.cross_attention(q_BHK, *self.cache.cross_slots(layer), self.length_B)


@dataclass(frozen=True, slots=True)
class _TorchAttention:
    cache: KVCache
    num_rows: int
    num_positions: int
    num_encoder: int
    bias_NT1: Tensor
    place_N: Tensor
    cross_mask_NL1: Tensor | None

    def own(self, layer: int, qkv_B3HK: Tensor) -> Tensor:
        q_BHK, k_BHK, v_BHK = qkv_B3HK.view(self.num_rows, 3, self.cache.num_heads, -1).unbind(1)
        self.cache.append(layer, k_BHK, v_BHK, self.place_N)
        keys, values = self.cache.own(layer, self.num_rows, self.num_positions)
        return self._attend(q_BHK.flatten(0, 1), keys, values, self.bias_NT1)

    def cross(self, layer: int, q_BHK: Tensor) -> Tensor:
        keys, values = self.cache.cross(layer, self.num_rows, self.num_encoder)
        return self._attend(q_BHK.view(-1, keys.shape[2]), keys, values, self.cross_mask_NL1)

    def _attend(self, q_NK: Tensor, k_NSK: Tensor, v_NSK: Tensor, bias_NS1: Tensor | None) -> Tensor:
        """Attend from one token per row and head to its cached positions S, in the cache's dtype."""
        # A transposed row, not unsqueeze(-1): the strides of the column choose the kernel; this one is 3 times as fast.
        q_NK1 = q_NK.to(k_NSK.dtype).unsqueeze(1).transpose(1, 2)
        score_NS1 = torch.bmm(k_NSK, q_NK1) if bias_NS1 is None else torch.baddbmm(bias_NS1, k_NSK, q_NK1)
        weight_NS = torch.softmax(score_NS1.squeeze(2), dim=1)
        y_NK = torch.bmm(weight_NS.unsqueeze(1), v_NSK).squeeze(1)
        return y_NK.to(q_NK.dtype).view(self.num_rows, -1)
