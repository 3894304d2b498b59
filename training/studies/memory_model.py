"""Models for the memory study: of a config's shape, on the meta device or in memory, wrapped for a method.

It knows methods by what they make trainable and how wide they keep the base. It does not train.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

from training.errors import TrainingConfigError
from training.model import speed_up
from training.studies.config import MemoryConfig

_BLOCK, _SECOND_BLOCK = 64, 256


def build(shape: PretrainedConfig, method: str, study: MemoryConfig, *, device: str) -> torch.nn.Module:
    """Return a model of `shape` as `method` trains it, with random weights.

    Args:
        shape: of the base.
        method: `full`, `lora`, `qlora` or `prompt`.
        study: ranks, layers, dtype.
        device: `meta` for a plan, `cpu` or `cuda` for a measurement.

    Raises:
        TrainingConfigError: an unknown method or dtype, or a four-bit model that would have to hold data.
    """
    kind = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model = kind.from_config(shape, dtype=torch.float32, attn_implementation="eager")
    speed_up(model)
    if method == "qlora":
        if device != "meta":
            raise TrainingConfigError("qlora is planned only: measure full, lora or prompt")
        _quantize(model)
    if method != "full":
        model.requires_grad_(requires_grad=False)
        model = get_peft_model(model, _peft_config(shape, method, study))
    if study.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model


def dtype_of(study: MemoryConfig) -> torch.dtype:
    """Return the dtype that weights and activations have during training.

    Raises:
        TrainingConfigError: neither `float32` nor `bfloat16`.
    """
    if study.dtype not in {"float32", "bfloat16"}:
        raise TrainingConfigError(f"dtype is float32 or bfloat16, not {study.dtype!r}")
    return getattr(torch, study.dtype)


def _peft_config(shape: PretrainedConfig, method: str, study: MemoryConfig) -> LoraConfig | PromptTuningConfig:
    task = TaskType.SEQ_2_SEQ_LM if shape.is_encoder_decoder else TaskType.CAUSAL_LM
    if method in {"lora", "qlora"}:
        return LoraConfig(task_type=task, r=study.rank, target_modules=list(study.target_modules))
    if method == "prompt":
        # One set of rows: PEFT would keep a second one for the decoder, which nothing reads.
        return PromptTuningConfig(
            task_type=task,
            num_virtual_tokens=study.num_virtual_tokens,
            num_transformer_submodules=1,
            token_dim=shape.hidden_size,
        )
    raise TrainingConfigError(f"method is full, lora, qlora or prompt, not {method!r}")


class _FourBitLinear(torch.nn.Linear):
    """A linear layer of two four-bit numbers a byte, made wide for each product. On the meta device only.

    A block of 64 numbers has a one-byte scale, and 256 of those a float32 one.

    Source: NF4 with double quantization, Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    def __init__(self, wide: torch.nn.Linear) -> None:
        super().__init__(wide.in_features, wide.out_features, bias=wide.bias is not None, device="meta")
        count = wide.weight.numel()
        packed = torch.empty(-(-count // 2), dtype=torch.uint8, device="meta")
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", torch.empty(-(-count // _BLOCK), dtype=torch.uint8, device="meta"))
        self.register_buffer("second_scales", torch.empty(-(-count // (_BLOCK * _SECOND_BLOCK)), device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        y = _FourBitProduct.apply(x, self.out_features)
        return y if self.bias is None else y + self.bias


class _FourBitProduct(torch.autograd.Function):
    """A product with a weight that is made wide for it, and again for the gradient; nothing is kept between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int) -> Tensor:
        ctx.in_features = x.shape[-1]
        return linear(x, x.new_empty(out_features, ctx.in_features))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ gradient.new_empty(gradient.shape[-1], ctx.in_features), None


def _quantize(model: torch.nn.Module) -> None:
    """Replace every linear layer but the output head and those that transformers keeps wide, as it does for T5's wo."""
    head, wide = model.get_output_embeddings(), set(model._keep_in_fp32_modules or ())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not head and name not in wide:
                setattr(module, name, _FourBitLinear(child))
