"""A linear layer in 8 bits made for a processor's integer products: our own, faster than bfloat16 and half its size.

Weights are int8 with one scale per output, quantized once at load; inputs are quantized on the fly, each row by its own
largest number, so no row depends on another. Needs the compiled kernels and AVX512_VNNI. Not LLM.int8, which keeps
columns of large inputs apart: see :class:`~server.engine.native.layers.quantized_linear.LlmInt8Linear`.

Legend: x_NI input, y_NO output; N rows, I in, O out. Made on any thread, called on the step thread only.
"""

from torch import Tensor

from server.core.errors import FailedPreconditionError
from server.engine.native.kernels import cpu


class DynamicInt8Linear:
    """y = x Wᵀ in int8, with an optional residual added in the same pass.

    Args:
        weight_OI: The weight, float32 or bfloat16; not kept.

    Attributes:
        num_bytes: What the weight takes.

    Raises:
        FailedPreconditionError: If there is no kernel for this weight here.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        if not cpu.can_multiply_int8(weight_OI):
            num_out, num_in = weight_OI.shape
            raise FailedPreconditionError(
                f"quantization int8 cannot keep a layer of {num_in} inputs and {num_out} outputs on this "
                f"{weight_OI.device.type}: it needs a CPU with AVX512_VNNI, the compiled kernels, and multiples of 16 "
                "inputs and outputs; use bitsandbytes-8bit or none instead"
            )
        self._packed, self._scale_O, self._sum_O = cpu.pack_int8(weight_OI)
        self.num_bytes = self._packed.nbytes + self._scale_O.nbytes + self._sum_O.nbytes

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        return cpu.linear_int8(x_NI, self._packed, self._scale_O, self._sum_O, residual_NO)
