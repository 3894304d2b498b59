"""The compiled kernels as functions of tensors; the only caller of the extension ``_cpu``.

They run where the processor has AVX-512 and the package was built with a C++ compiler; :func:`can_run` tells. Every
function reads and writes contiguous tensors of one dtype, float32 or bfloat16, and computes in float32. They share
their work with threads of their own, as many as :func:`set_num_threads` says. Step thread only.

Legend: B rows, N rows or tokens, D width, H heads, K head width, L encoder positions, T decoder positions, F
feed-forward width, V vocabulary.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

try:
    from server.engine.native.kernels import _cpu
except ImportError:
    _cpu = None

_LANES = 16
_HEAD_WIDTHS = {32, 64, 128}


def can_run(weight: Tensor, *, widths: Iterable[int] = (), head_width: int = 64) -> bool:
    """Whether the kernels serve a model with weights like this one and rows of these widths."""
    return (
        _cpu is not None
        and weight.device.type == "cpu"
        and weight.dtype in {torch.float32, torch.bfloat16}
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and head_width in _HEAD_WIDTHS
        and all(width % _LANES == 0 for width in widths)
    )


def set_num_threads(num_threads: int) -> None:
    """Say how many threads share a kernel's work from now on, the caller among them. Any thread."""
    if _cpu is not None:
        _cpu.set_num_threads(num_threads)


def can_multiply(weight: Tensor) -> bool:
    """Whether :func:`linear` serves a layer of this weight, (out, in)."""
    if not can_run(weight, widths=weight.shape):
        return False
    return weight.dtype == torch.float32 or _cpu.has_bf16_products()


def pack(weight_OI: Tensor) -> Tensor:
    """Return a weight as :func:`linear` reads it: blocks of 16 outputs, one input (bfloat16: two) after the other.

    What is missing to whole blocks and pairs is filled with zeros. The weight may lie in memory in any order.
    Any thread.
    """
    num_outputs, num_inputs = weight_OI.shape
    step = 2 if _is_bf16(weight_OI) else 1
    packed = weight_OI.new_empty(-(-num_outputs // _LANES), -(-num_inputs // step), _LANES, step)
    _cpu.pack(
        _is_bf16(weight_OI),
        weight_OI.data_ptr(),
        packed.data_ptr(),
        num_outputs,
        num_inputs,
        *weight_OI.stride(),
    )
    return packed


def linear(x_NI: Tensor, packed: Tensor, residual_NO: Tensor | None) -> Tensor:
    """Return x Wᵀ, plus the residual where given; sums in float32, rounded once."""
    assert x_NI.is_contiguous()
    y_NO = x_NI.new_empty(x_NI.shape[0], packed.shape[0] * _LANES)
    residual = 0 if residual_NO is None else residual_NO.data_ptr()
    _cpu.linear(
        _is_bf16(x_NI), x_NI.data_ptr(), packed.data_ptr(), residual, y_NO.data_ptr(), *x_NI.shape, y_NO.shape[1]
    )
    return y_NO


def can_multiply_int8(weight: Tensor) -> bool:
    """Whether the products of int8 serve a linear layer made of this weight, (out, in)."""
    return can_run(weight, widths=weight.shape) and _cpu.has_int8_products()


def pack_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a weight, each output by its largest number, and return what :func:`linear_int8` reads.

    Returns:
        The integers in blocks of 16 outputs with four inputs side by side; what undoes the quantization of each output;
        and 128 times the sum of each output's integers, which the kernel's shifted inputs add.
    """
    num_outputs, num_inputs = weight_OI.shape
    scale_O = weight_OI.abs().amax(1).float() / 127
    # An output of zeros only keeps them, whatever it is divided by.
    quantized_OI = (weight_OI / scale_O.where(scale_O > 0, 1)[:, None]).round_().to(torch.int8)
    packed = quantized_OI.view(num_outputs // _LANES, _LANES, num_inputs // 4, 4).permute(0, 2, 1, 3).contiguous()
    return packed, scale_O, quantized_OI.sum(1, dtype=torch.int32) * 128


def linear_int8(x_NI: Tensor, packed: Tensor, scale_O: Tensor, sum_O: Tensor, residual_NO: Tensor | None) -> Tensor:
    """Return x Wᵀ, plus the residual where given, with x quantized row by row; the sums are exact.

    A row that holds NaN or infinity gets NaN and leaves the others alone.
    """
    assert x_NI.is_contiguous()
    y_NO = x_NI.new_empty(x_NI.shape[0], len(scale_O))
    residual = 0 if residual_NO is None else residual_NO.data_ptr()
    _cpu.linear_int8(
        _is_bf16(x_NI),
        x_NI.data_ptr(),
        packed.data_ptr(),
        scale_O.data_ptr(),
        sum_O.data_ptr(),
        residual,
        y_NO.data_ptr(),
        *x_NI.shape,
        y_NO.shape[1],
    )
    return y_NO


def encoder_attention(qkv_T3HK: Tensor, first_B: Tensor, bias_HN: Tensor, num_heads: int) -> Tensor:
    """Attend within each row of a packed input; return (T, H·K).

    Args:
        qkv_T3HK: Queries, keys and values side by side, (T, 3·H·K).
        first_B: First token of each row, and the number of all tokens at the end, int64.
        bias_HN: Float32 bias by distance of key from query, distance 0 in the middle.
        num_heads: H.
    """
    assert qkv_T3HK.is_contiguous()
    num_tokens, width = qkv_T3HK.shape[0], qkv_T3HK.shape[1] // 3
    y_THK = qkv_T3HK.new_empty(num_tokens, width)
    _cpu.encoder_attention(
        _is_bf16(qkv_T3HK),
        qkv_T3HK.data_ptr(),
        first_B.data_ptr(),
        len(first_B) - 1,
        bias_HN.data_ptr(),
        bias_HN.shape[1],
        bias_HN.shape[1] // 2,
        num_heads,
        width // num_heads,
        y_THK.data_ptr(),
    )
    return y_THK


def rms_norm(x_ND: Tensor, gamma_D: Tensor, eps: float) -> Tensor:
    """Return x / √(mean(x²) + eps) · gamma."""
    assert x_ND.is_contiguous()
    y_ND = torch.empty_like(x_ND)
    _cpu.rms_norm(_is_bf16(x_ND), x_ND.data_ptr(), gamma_D.data_ptr(), y_ND.data_ptr(), *x_ND.shape, eps)
    return y_ND


def gated_gelu(h_N2F: Tensor) -> Tensor:
    """Return gelu(first half) · second half, (N, F), with GELU in its tanh form."""
    assert h_N2F.is_contiguous()
    y_NF = h_N2F.new_empty(h_N2F.shape[0], h_N2F.shape[1] // 2)
    _cpu.gated_gelu(_is_bf16(h_N2F), h_N2F.data_ptr(), y_NF.data_ptr(), *y_NF.shape)
    return y_NF


def self_attention(
    qkv_B3HK: Tensor, keys_SHTK: Tensor, values_SHTK: Tensor, bias_HT: Tensor, position_B: Tensor
) -> Tensor:
    """Store each row's newest key and value at its position, attend to all up to it; return (B, H·K).

    Args:
        qkv_B3HK: Queries, keys and values side by side, (B, 3·H·K).
        keys_SHTK: Cached keys of the layer, row by slot; row i is slot i.
        values_SHTK: Cached values.
        bias_HT: Float32 bias by age, the oldest first, so that the last entry is the newest token's own.
        position_B: Where each row stands, int64.
    """
    assert qkv_B3HK.is_contiguous()
    num_rows, num_heads, width = len(qkv_B3HK), keys_SHTK.shape[1], keys_SHTK.shape[3]
    y_BHK = qkv_B3HK.new_empty(num_rows, num_heads * width)
    _cpu.self_attention(
        _is_bf16(qkv_B3HK),
        qkv_B3HK.data_ptr(),
        keys_SHTK.data_ptr(),
        values_SHTK.data_ptr(),
        bias_HT.data_ptr(),
        bias_HT.shape[1],
        position_B.data_ptr(),
        y_BHK.data_ptr(),
        num_rows,
        num_heads,
        keys_SHTK.stride(0),
        keys_SHTK.stride(1),
        width,
    )
    return y_BHK


def cross_attention(q_BHK: Tensor, keys_SHLK: Tensor, values_SHLK: Tensor, length_B: Tensor) -> Tensor:
    """Attend from one query per row to the row's first ``length_B`` encoder positions; return (B, H·K)."""
    assert q_BHK.is_contiguous()
    num_rows, num_heads, width = len(q_BHK), keys_SHLK.shape[1], keys_SHLK.shape[3]
    y_BHK = torch.empty_like(q_BHK)
    _cpu.cross_attention(
        _is_bf16(q_BHK),
        q_BHK.data_ptr(),
        keys_SHLK.data_ptr(),
        values_SHLK.data_ptr(),
        length_B.data_ptr(),
        y_BHK.data_ptr(),
        num_rows,
        num_heads,
        keys_SHLK.stride(0),
        keys_SHLK.stride(1),
        width,
    )
    return y_BHK


def add_lora(site_B: Tensor, x_BI: Tensor, y_BO: Tensor) -> None:
    """Add B(Ax) of each row's adapter at one site to the first rows of ``y_BO`` in place.

    Args:
        site_B: Address of what the row's adapter does there, int64; 0 where it does nothing. ``layers/lora_rows.py``
            says what lies at the address.
        x_BI: Input of the site.
        y_BO: Its output.
    """
    assert x_BI.is_contiguous()
    assert y_BO.is_contiguous()
    _cpu.add_lora(
        _is_bf16(x_BI),
        site_B.data_ptr(),
        len(site_B),
        x_BI.data_ptr(),
        x_BI.shape[1],
        y_BO.data_ptr(),
        y_BO.shape[1],
    )


def add_packed_lora(packed: Tensor, first_row: int, num_rows: int, x_NI: Tensor, y_NO: Tensor) -> None:
    """Add B(Ax) of one adapter at one site to rows that lie together, in place.

    Args:
        packed: What ``layers/lora_rows.py`` says lies in it.
        first_row: First of the rows.
        num_rows: How many.
        x_NI: Input of the site.
        y_NO: Its output.
    """
    assert x_NI.is_contiguous()
    assert y_NO.is_contiguous()
    _cpu.add_packed_lora(
        _is_bf16(x_NI),
        packed.data_ptr(),
        first_row,
        num_rows,
        x_NI.data_ptr(),
        x_NI.shape[1],
        y_NO.data_ptr(),
        y_NO.shape[1],
    )


def argmax(logits_BV: Tensor) -> Tensor:
    """Return each row's best token, the first of equals, or -1 where its logits hold NaN or positive infinity."""
    assert logits_BV.is_contiguous()
    token_B = torch.empty(len(logits_BV), dtype=torch.long)
    _cpu.argmax(_is_bf16(logits_BV), logits_BV.data_ptr(), token_B.data_ptr(), *logits_BV.shape)
    return token_B


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16
