"""Which linear layers of a base are quantized and how; those that bitsandbytes computes.

Weights are quantized once, at load, row by row, so a fused layer holds exactly what its parts would hold. Activations,
adapters and everything else stay in the serving dtype. Imports bitsandbytes only when it is asked for. Knows no
settings, and of a model only the names of its sites. Layers are made on any thread and called on the step thread only.

Legend: x_NI input, y_NO output; N rows, I in, O out.

Source:
    arXiv:2208.07339 (LLM.int8), arXiv:2305.14314 (NF4, double quantization); computed by bitsandbytes 0.50 as
    ``transformers`` calls it for ``BitsAndBytesConfig(load_in_8bit=True)`` and ``(load_in_4bit=True, "nf4")``.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from server.core.errors import FailedPreconditionError
from server.engine.native.layers.int8_linear import DynamicInt8Linear
from server.engine.native.layers.linear import Linear, MakeLinear, PackedLinear, make_packed

# transformers leaves these as they are, so adapters were trained above such a base.
_LEFT_BY_BITSANDBYTES = (".wo", "lm_head")

# An input column with a value of at least this size is multiplied in the serving dtype (LLM.int8's threshold).
_OUTLIER = 6.0
# NF4 scales blocks of so many values along the flattened weight; its CPU kernel takes outputs so many at a time.
_NF4_BLOCK = 64
_NF4_OUTPUTS = 32


def linear_maker(quantization: str) -> MakeLinear:
    """Return what makes the linear layers of a base.

    Args:
        quantization: ``none``, ``int8``, ``bitsandbytes-8bit``, ``bitsandbytes-4bit`` or ``bitsandbytes-4bit-double``.

    Raises:
        FailedPreconditionError: If bitsandbytes is asked for and not installed.
    """
    if quantization == "none":
        return make_packed
    if quantization == "int8":
        return _make_int8
    bitsandbytes = _import_bitsandbytes()
    if quantization == "bitsandbytes-8bit":
        return partial(_make_theirs, partial(LlmInt8Linear, bitsandbytes))
    is_double = quantization == "bitsandbytes-4bit-double"
    return partial(_make_theirs, partial(NF4Linear, bitsandbytes, is_double=is_double))


def _make_int8(_site: str, weight_OI: Tensor) -> Linear:
    return DynamicInt8Linear(weight_OI)


def _make_theirs(quantized: Callable[[Tensor], Linear], site: str, weight_OI: Tensor) -> Linear:
    return PackedLinear(weight_OI) if site.endswith(_LEFT_BY_BITSANDBYTES) else quantized(weight_OI)


class LlmInt8Linear:
    """LLM.int8: int8 weights scaled per output, inputs quantized per row on the fly, outlier columns left as they are.

    A column is an outlier for all rows of a call when it is one in any row, so a row's last digits depend on its
    neighbours; that is the method.

    Args:
        bitsandbytes: The package.
        weight_OI: The weight; not kept.

    Attributes:
        num_bytes: What the weight takes.
    """

    def __init__(self, bitsandbytes: ModuleType, weight_OI: Tensor) -> None:
        self._quantize = bitsandbytes.functional.int8_vectorwise_quant
        # Quantized in half precision like the library's own layer, so that both hold the same integers.
        self._weight_OI, self._scale_O, _ = self._quantize(weight_OI.half())
        self.num_bytes = self._weight_OI.nbytes + self._scale_O.nbytes

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        x_half_NI = x_NI.to(torch.float16, memory_format=torch.contiguous_format)
        quantized_NI, scale_N, outliers = self._quantize(x_half_NI, threshold=_OUTLIER)
        # The library's own function logs a warning at every call whose input is not in half precision.
        y_NO, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            x_NI, quantized_NI, self._weight_OI, scale_N, self._scale_O, outliers
        )
        return y_NO if residual_NO is None else y_NO.add_(residual_NO)


class NF4Linear:
    """NF4: 4-bit weights, one scale per 64 values; inputs in the serving dtype.

    Args:
        bitsandbytes: The package.
        weight_OI: The weight; not kept.
        is_double: Whether the scales are quantized too.

    Attributes:
        num_bytes: What the weight takes.

    Raises:
        FailedPreconditionError: If the weight's shape does not divide into blocks.
    """

    def __init__(self, bitsandbytes: ModuleType, weight_OI: Tensor, *, is_double: bool) -> None:
        num_out, num_in = weight_OI.shape
        if num_in % _NF4_BLOCK or num_out % _NF4_OUTPUTS:
            raise FailedPreconditionError(
                f"4-bit quantization needs layers of a multiple of {_NF4_BLOCK} inputs and {_NF4_OUTPUTS} outputs, "
                f"not {num_in} and {num_out}"
            )
        nn = bitsandbytes.nn
        layer = nn.Linear4bit(num_in, num_out, bias=False, compute_dtype=weight_OI.dtype, device="meta").eval()
        layer.weight = nn.Params4bit(
            weight_OI, requires_grad=False, blocksize=_NF4_BLOCK, compress_statistics=is_double, quant_type="nf4"
        ).to(weight_OI.device)
        with torch.no_grad():
            # The first call lays the weight out for the processor; what is counted below is what is kept.
            layer(weight_OI.new_zeros(1, num_in))
        self._layer = layer
        self.num_bytes = layer.weight.nbytes + _scale_bytes(layer.weight.quant_state)

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, plus ``residual_NO`` where given."""
        y_NO = self._layer(x_NI)
        return y_NO if residual_NO is None else y_NO.add_(residual_NO)


def _scale_bytes(state: object) -> int:
    nested = getattr(state, "state2", None)
    return state.absmax.nbytes + (nested.absmax.nbytes if nested is not None else 0)


def _import_bitsandbytes() -> ModuleType:
    try:
        with _without_kernels_notice():
            import bitsandbytes
    except ImportError as error:
        raise FailedPreconditionError(
            "this quantization needs bitsandbytes: pip install 'medley[quantization]'"
        ) from error
    return bitsandbytes


@contextmanager
def _without_kernels_notice() -> Iterator[None]:
    """Drop the one notice about a kernel the package would fetch from a hub: without it nothing is amiss."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")

    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
