"""A linear layer whose weight never changes: laid out once for the device's fastest kernel.

Legend: x_NI input, y_NO output; N rows, I in, O out. Step thread only.

On CPU the weight is kept in oneDNN's blocked layout, which reads it about twice as fast as a plain matrix at a decode
step's few rows; elsewhere it is a plain matrix.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

# The number of rows the layout is chosen for: measured, one chosen for 16 is the best or near it from 1 to 1024.
_ROWS_HINT = 16


class Linear(Protocol):
    """y = x Wᵀ, however the weight is kept.

    Attributes:
        num_bytes: What the weight takes.
    """

    num_bytes: int

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        ...


MakeLinear = Callable[[Tensor], Linear]
"""Makes a layer of its weight (out, in)."""


class PackedLinear:
    """y = x Wᵀ, with an optional residual added in the same pass.

    Args:
        weight_OI: The weight; not kept when it is packed.

    Attributes:
        num_bytes: What the weight takes.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self.num_bytes = weight_OI.nbytes
        self._packed = _can_pack(weight_OI)
        self._weight = _pack(weight_OI) if self._packed else weight_OI

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        if not self._packed:
            y_NO = functional.linear(x_NI, self._weight)
            return y_NO if residual_NO is None else y_NO.add_(residual_NO)
        if residual_NO is None:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, residual_NO, self._weight, None, "add")


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
