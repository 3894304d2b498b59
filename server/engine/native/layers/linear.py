"""A linear layer whose weight never changes: laid out once for the device's fastest kernel.

Legend: x_NI input, y_NO output; N rows, I in, O out. Step thread only.

On CPU the weight is kept as our own kernel reads it, which in bfloat16 is 1.1 to 3 times as fast as oneDNN's at a
decode step's 1 to 32 rows and equal above; where that cannot run in oneDNN's blocked layout, about twice as fast as a
plain matrix. Elsewhere it is a plain matrix.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from server.engine.native.kernels import cpu

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


MakeLinear = Callable[[str, Tensor], Linear]
"""Makes the layer of a site, by the site's name and its weight (out, in)."""


class PackedLinear:
    """y = x Wᵀ, with an optional residual added in the same pass.

    Args:
        weight_OI: The weight; not kept when it is packed.

    Attributes:
        num_bytes: What the weight takes.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self.num_bytes = weight_OI.nbytes
        self._weight, self._multiply = _lay_out(weight_OI)

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        return self._multiply(x_NI, self._weight, residual_NO)


def make_packed(_site: str, weight_OI: Tensor) -> Linear:
    """Return the layer of any site in the serving dtype."""
    return PackedLinear(weight_OI)


def _lay_out(weight_OI: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor, Tensor | None], Tensor]]:
    """Return the weight as the fastest product there is reads it, and that product."""
    if cpu.can_multiply(weight_OI):
        return cpu.pack(weight_OI), cpu.linear
    if _can_pack(weight_OI):
        return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS_HINT), _multiply_packed
    return weight_OI, _multiply_plain


def _multiply_packed(x_NI: Tensor, packed: Tensor, residual_NO: Tensor | None) -> Tensor:
    if residual_NO is None:
        return torch.ops.mkldnn._linear_pointwise(x_NI, packed, None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x_NI, residual_NO, packed, None, "add")


def _multiply_plain(x_NI: Tensor, weight_OI: Tensor, residual_NO: Tensor | None) -> Tensor:
    y_NO = functional.linear(x_NI, weight_OI)
    return y_NO if residual_NO is None else y_NO.add_(residual_NO)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
