"""What the benchmarks serve: bases, LoRAs and soft prompts, written as the folders every side reads.

Bases of published shapes get random weights, since speed depends on shapes only; ``medley-mini`` is the shipped base.
None of them ever ends an output by itself, so every side generates exactly as many tokens as it is asked to. Knows no
engine beyond the :class:`~server.engine.base.ResolvedAdapter` that names a folder.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from adapters.base_spec import read_base_spec
from adapters.manifest import AdapterKind
from server.engine.base import ResolvedAdapter

MEDLEY_MINI = "medley-mini"
# Shapes as the published checkpoints' config.json give them.
RANDOM_SHAPES: Mapping[str, Mapping[str, object]] = {
    "flan-t5-small": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
    "flan-t5-base": {
        "vocab_size": 32128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
    },
}
SHAPES = (*RANDOM_SHAPES, MEDLEY_MINI)

FIRST_TEXT_TOKEN_ID = 3
_PAD, _EOS = 0, 1
_LIBRARY = Path(__file__).parents[1] / "adapters" / "library"


def write_base(folder: Path, shape: str, *, seed: int = 0) -> Path:
    """Write a base of one of :data:`SHAPES` and return its folder."""
    if shape == MEDLEY_MINI:
        model = T5ForConditionalGeneration.from_pretrained(_LIBRARY / MEDLEY_MINI)
    else:
        model = random_base(RANDOM_SHAPES[shape], seed=seed)
    return save_base(folder, model)


def served_base(folder: Path, shape: str) -> Path:
    """Return the folder of a base that texts can be sent to: the shipped one, or a shape's, with the shipped tokenizer.

    The shipped one ends its answers itself.
    """
    shipped = _LIBRARY / MEDLEY_MINI
    if shape == MEDLEY_MINI:
        return shipped
    write_base(folder, shape)
    for path in shipped.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def save_base(folder: Path, model: T5ForConditionalGeneration) -> Path:
    """Write a base that never ends an output by itself: its end token scores what padding does, which never wins."""
    with torch.no_grad():
        model.lm_head.weight[_EOS] = model.lm_head.weight[_PAD]
    model.save_pretrained(folder)
    return folder


def random_base(fields: Mapping[str, object], *, seed: int) -> T5ForConditionalGeneration:
    """Return a T5 of the given shape whose random weights keep outputs varied and their best tokens well apart."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**fields, decoder_start_token_id=_PAD, tie_word_embeddings=False))
    with torch.no_grad():
        # Narrow embeddings keep the newest token from drowning the layers' outputs.
        model.shared.weight.mul_(0.05)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.shared.weight))
    model.lm_head.weight.data[_PAD] = 0.0
    return model


def random_prompts(base: Path, lengths: Sequence[int], *, seed: int = 0) -> list[tuple[int, ...]]:
    """Return prompts of random text tokens, one of each length."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = read_base_spec(base).vocab_size
    return [
        tuple(torch.randint(FIRST_TEXT_TOKEN_ID, vocab_size, (length,), generator=generator).tolist())
        for length in lengths
    ]


def write_loras(folder: Path, base: Path, ranks: Sequence[int], *, seed: int = 0) -> list[ResolvedAdapter]:
    """Write LoRAs on q and v, one of each rank, as PEFT folders ``lora-0``, ``lora-1``, …; return them.

    Their deltas are a third as strong as the layers they change: enough to change the tokens, not the numerics.
    """
    draws = torch.Generator().manual_seed(seed)
    shapes = {path: shape for path, shape in read_base_spec(base).linear_shapes.items() if path[-2:] in {".q", ".v"}}
    strengths = _strengths(base, list(shapes))
    adapters = []
    for index, rank in enumerate(ranks):
        tensors = {}
        for path, (num_out, num_in) in shapes.items():
            b_OR = torch.randn(num_out, rank, generator=draws) * (0.3 * strengths[path] / rank**0.5)
            tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, num_in, generator=draws)
            tensors[f"base_model.model.{path}.lora_B.weight"] = b_OR
        config = LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM, r=rank, lora_alpha=rank, target_modules=["q", "v"], inference_mode=True
        )
        path = _write_adapter(folder / f"lora-{index}", config, tensors)
        adapters.append(ResolvedAdapter(path.name, AdapterKind.LORA, path, rank=rank))
    return adapters


def write_soft_prompts(folder: Path, base: Path, lengths: Sequence[int], *, seed: int = 0) -> list[ResolvedAdapter]:
    """Write soft prompts, one of each length, as PEFT folders ``prompt-0``, ``prompt-1``, …; return them."""
    draws = torch.Generator().manual_seed(seed)
    width = read_base_spec(base).d_model
    adapters = []
    for index, length in enumerate(lengths):
        config = PromptTuningConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            num_virtual_tokens=length,
            token_dim=width,
            num_transformer_submodules=2,
            inference_mode=True,
        )
        # PEFT keeps as many rows again for the decoder, which its encoder-decoder models never read.
        embeddings = torch.randn(2 * length, width, generator=draws) * 0.1
        path = _write_adapter(folder / f"prompt-{index}", config, {"prompt_embeddings": embeddings})
        adapters.append(ResolvedAdapter(path.name, AdapterKind.PROMPT, path, num_virtual_tokens=length))
    return adapters


def _write_adapter(folder: Path, config: LoraConfig | PromptTuningConfig, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _strengths(base: Path, paths: Sequence[str]) -> dict[str, float]:
    """Return the standard deviation of each layer's weight."""
    with safe_open(base / "model.safetensors", framework="pt") as file:
        return {path: float(file.get_tensor(f"{path}.weight").float().std()) for path in paths}
