"""Keys and values of the decoder, by row: its own past (self) and the encoder's output (cross).

Everything is allocated once, for the most rows and positions; on CPU the memory is taken from the system only as rows
reach it. A row's numbers lie head by head, so that one batched product reads them without a copy. Rows beyond a row's
own length hold old numbers, which attention masks; they must therefore stay finite, see :meth:`KVCache.clear`.

Legend: B rows, H heads, K head width, L encoder positions, T decoder positions; N = B·H. Step thread only.
"""

import torch
from torch import Tensor

from server.engine.native.kernels import cpu
from server.engine.native.layers.prefix import Prefix


def cache_dtype(weight: Tensor, head_width: int) -> torch.dtype:
    """Return the dtype to cache in, for a model whose weights are like this one.

    On CPU without kernels float32 even for a bfloat16 model: torch's batched products of one query each are 1.5 to 7
    times as fast there.
    """
    if weight.device.type != "cpu" or cpu.can_run(weight, head_width=head_width):
        return weight.dtype
    return torch.float32


class KVCache:
    """The cache of every decoder layer.

    Args:
        num_layers: Decoder layers.
        num_rows: Most rows.
        num_heads: H.
        head_width: K.
        max_encoder_len: Most encoder positions of a row.
        max_decoder_len: Most decoder positions of a row.
        weight: A weight of the model: says where the cache lies and in what dtype.

    Attributes:
        dtype: What it holds.
        num_heads: As given.
        has_kernels: Whether the compiled kernels read it.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_heads: int,
        head_width: int,
        max_encoder_len: int,
        max_decoder_len: int,
        weight: Tensor,
    ) -> None:
        self.has_kernels = cpu.can_run(weight, head_width=head_width)
        self.dtype = cache_dtype(weight, head_width)
        self.num_heads = num_heads
        device, dtype = weight.device, self.dtype
        shape = (2, num_layers, num_rows, num_heads)
        self._cross = torch.zeros(*shape, max_encoder_len, head_width, device=device, dtype=dtype)
        self._self = torch.zeros(*shape, max_decoder_len, head_width, device=device, dtype=dtype)
        self._cross_N = self._cross.flatten(2, 3)
        self._self_N = self._self.flatten(2, 3)
        self._self_flat = self._self.flatten(2, 4)

    def write_cross(self, row: int, kv_L: Tensor) -> None:
        """Store a row's cross keys and values of all layers; ``kv_L`` is (L, layers, 2, H, K)."""
        self._cross[:, :, row, :, : len(kv_L)] = kv_L.permute(2, 1, 3, 0, 4)

    def write_prefix(self, row: int, prefix: Prefix) -> None:
        """Store a prefix at a row's first own positions, in every layer."""
        num_positions = prefix.keys.shape[1]
        for cached, new in zip(self._self, (prefix.keys, prefix.values), strict=True):
            cached[:, row, :, :num_positions] = new.transpose(1, 2)

    def places(self, position_B: Tensor) -> Tensor:
        """Return where the newest token of each of the first rows goes, head by head (N,), for :meth:`append`."""
        head_N = torch.arange(len(position_B) * self.num_heads, device=position_B.device)
        return head_N * self._self.shape[-2] + position_B.repeat_interleave(self.num_heads)

    def append(self, layer: int, k_BHK: Tensor, v_BHK: Tensor, place_N: Tensor) -> None:
        """Store the newest token's key and value of each row at its place."""
        for cached, new_BHK in zip(self._self_flat[:, layer], (k_BHK, v_BHK), strict=True):
            cached.index_copy_(0, place_N, new_BHK.flatten(0, 1).to(self.dtype))

    def cross(self, layer: int, num_rows: int, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return views of the first rows' keys and values, (N, L, K) each."""
        keys, values = self._cross_N[:, layer, : num_rows * self.num_heads, :num_positions]
        return keys, values

    def own(self, layer: int, num_rows: int, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return views of the first rows' own keys and values, (N, T, K) each."""
        keys, values = self._self_N[:, layer, : num_rows * self.num_heads, :num_positions]
        return keys, values

    def own_slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the own keys and values of a layer, row by slot, (S, H, T, K) each."""
        return self._self[0, layer], self._self[1, layer]

    def cross_slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the cross keys and values of a layer, row by slot, (S, H, L, K) each."""
        return self._cross[0, layer], self._cross[1, layer]

    def cross_mask(self, length_B: Tensor, num_positions: int) -> Tensor:
        """Return 0 for each row's own encoder positions and minus infinity beyond, (N, L, 1)."""
        beyond_BL = torch.arange(num_positions, device=length_B.device) >= length_B.unsqueeze(1)
        mask_BL = torch.zeros(beyond_BL.shape, device=length_B.device, dtype=self.dtype)
        mask_BL.masked_fill_(beyond_BL, float("-inf"))
        return mask_BL.repeat_interleave(self.num_heads, dim=0).unsqueeze(2)

    def move(self, source: int, target: int, *, num_encoder: int, num_decoder: int) -> None:
        """Copy a row's first positions over another row's."""
        self._cross[:, :, target, :, :num_encoder] = self._cross[:, :, source, :, :num_encoder]
        self._self[:, :, target, :, :num_decoder] = self._self[:, :, source, :, :num_decoder]

    def clear(self, row: int) -> None:
        """Zero a row that may hold NaN or infinity, before another row's masked positions meet them."""
        self._cross[:, :, row] = 0
        self._self[:, :, row] = 0

    def clear_all(self) -> None:
        """Zero everything, after a step that broke in the middle."""
        self._cross.zero_()
        self._self.zero_()
