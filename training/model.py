"""Build medley-mini's architecture from its recipe. It does not know data or training.

The shape is FLAN-T5's (RMS norms, relative positions, gated GELU) with a tied output head: what a decoder copies is
then scored by the very embedding the encoder read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

from training.config import ModelShape


class _RmsNorm(torch.autograd.Function):
    """y = x / rms(x) * w with a hand-written gradient: five passes over memory fewer than autograd's.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_BLD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        """Normalise over D; the mean square is taken in float32."""
        norm_BL1 = torch.linalg.vector_norm(x_BLD, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_BL1 = torch.rsqrt(norm_BL1.square_().div_(x_BLD.shape[-1]).add_(epsilon)).to(x_BLD.dtype)
        unit_BLD = x_BLD * inverse_BL1
        ctx.save_for_backward(unit_BLD, inverse_BL1, weight_D)
        return unit_BLD * weight_D

    @staticmethod
    def backward(ctx: FunctionCtx, grad_BLD: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Dx = (g w - u mean(g w u)) / rms(x), with u the unit vector; dw = sum(g u)."""
        unit_BLD, inverse_BL1, weight_D = ctx.saved_tensors
        product_BLD = grad_BLD * unit_BLD
        mean_BL1 = (product_BLD @ weight_D).unsqueeze(-1).div_(grad_BLD.shape[-1])
        grad_x_BLD = (grad_BLD * weight_D).addcmul_(unit_BLD, mean_BL1, value=-1.0).mul_(inverse_BL1)
        return grad_x_BLD, product_BLD.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


class _FastRmsNorm(torch.nn.Module):
    """Stands in for T5LayerNorm during training; shares its weight."""

    def __init__(self, norm: T5LayerNorm) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x_BLD: Tensor) -> Tensor:
        return _RmsNorm.apply(x_BLD, self.weight, self.variance_epsilon)


def speed_up(model: torch.nn.Module) -> None:
    """Replace, in place, norms and activation of a T5 by equivalents that train a third faster on a CPU.

    Names and weights stay as they are, so the state dict still fits the plain model.

    Raises:
        Nothing.
    """
    for module in list(model.modules()):
        if isinstance(module, T5DenseGatedActDense):
            module.act = torch.nn.GELU(approximate="tanh")
        for name, child in list(module.named_children()):
            if isinstance(child, T5LayerNorm):
                setattr(module, name, _FastRmsNorm(child))


def build_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """Return a freshly initialised float32 model in training mode.

    Raises:
        Nothing.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        num_heads=shape.num_heads,
        d_ff=shape.d_ff,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
    )
    return model.train()
