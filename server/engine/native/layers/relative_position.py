"""T5's relative position bias: one learned number per head and bucket of distance.

Legend: H heads, L tokens, B rows, T decoder positions. Knows no cache and no requests. Step thread only.

Source:
    arXiv:1910.10683 §2.1; buckets as transformers 5.19 ``T5Attention._relative_position_bucket``.
"""

import math

import torch
from torch import Tensor


def _bucket(distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each signed distance, key position minus query position."""
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        offset = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    num_exact = num_buckets // 2
    share = torch.log(distance.float() / num_exact) / math.log(max_distance / num_exact)
    wide = (num_exact + (share * (num_buckets - num_exact)).clamp(min=0).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < num_exact, distance, wide)


class EncoderBias:
    """Bias between all positions of an encoder input.

    Args:
        weight_NH: The learned numbers; N buckets.
        max_len: Most positions.
        max_distance: Distance from which on all share a bucket.

    Attributes:
        weight_NH: As given.
        by_distance_HN: Float32 bias by distance of key from query, distance 0 in the middle.
    """

    def __init__(self, weight_NH: Tensor, *, max_len: int, max_distance: int) -> None:
        distance = torch.arange(1 - max_len, max_len, device=weight_NH.device)
        bucket = _bucket(distance, bidirectional=True, num_buckets=len(weight_NH), max_distance=max_distance)
        self.weight_NH = weight_NH
        self.by_distance_HN = weight_NH[bucket].T.float().contiguous()
        self._max_len = max_len

    def __call__(self, num_tokens: int) -> Tensor:
        """Return the bias for an input of ``num_tokens``: (1, H, L, L)."""
        position = torch.arange(num_tokens, device=self.by_distance_HN.device)
        distance_LL = position[None, :] - position[:, None] + (self._max_len - 1)
        return self.by_distance_HN[:, distance_LL].unsqueeze(0).to(self.weight_NH.dtype)


class DecoderBias:
    """Bias, and causal mask, of each row's newest token against its own past.

    Args:
        weight_NH: The learned numbers; N buckets.
        max_len: Most decoder positions.
        max_distance: Distance from which on all share a bucket.

    Attributes:
        oldest_first_HT: Float32 bias by age, the oldest first; the last entry is a token's bias against itself.
    """

    def __init__(self, weight_NH: Tensor, *, max_len: int, max_distance: int) -> None:
        distance = -torch.arange(max_len, device=weight_NH.device)
        bucket = _bucket(distance, bidirectional=False, num_buckets=len(weight_NH), max_distance=max_distance)
        # The last entry stands for "not yet written": minus infinity.
        future_H1 = weight_NH.new_full((weight_NH.shape[1], 1), float("-inf"))
        self._by_age_HN = torch.cat([weight_NH[bucket].T, future_H1], dim=1)
        self.oldest_first_HT = weight_NH[bucket].T.flip(1).float().contiguous()
        self._position_T = torch.arange(max_len, device=weight_NH.device)
        self._future = max_len

    def __call__(self, position_B: Tensor, num_positions: int) -> Tensor:
        """Return the bias of each row's position against the first ``num_positions``: (B·H, T, 1)."""
        age_BT = position_B[:, None] - self._position_T[:num_positions]
        age_BT = torch.where(age_BT < 0, self._future, age_BT)
        bias_HBT = self._by_age_HN[:, age_BT]
        return bias_HBT.transpose(0, 1).reshape(-1, num_positions, 1)
