"""What both servers serve: decoder-only bases of random weights, LoRAs and a soft prompt for them, as PEFT folders.

Speed depends on shapes only. The tokenizer has a text for every id, so that random output is text as real output is.
"""

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.base_spec import read_base_spec

SHAPES: Mapping[str, Mapping[str, object]] = {
    # So small that the front end is what a step costs.
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    # As the published checkpoint's config.json gives it.
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
_CONTEXT = 2048
_SPECIAL = ("<pad>", "<s>", "</s>")
_DELTA_STD = 0.02


def write_base(folder: Path, shape: str, *, seed: int = 0) -> Path:
    """Write a base of one of :data:`SHAPES` in bfloat16, with its tokenizer, and return its folder."""
    torch.manual_seed(seed)
    fields = SHAPES[shape]
    config = LlamaConfig(
        **fields,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(int(str(fields["vocab_size"]))).save_pretrained(folder)
    return folder


def write_loras(folder: Path, base: Path, ranks: Sequence[int], *, seed: int = 0) -> dict[str, Path]:
    """Write LoRAs on q, k, v and o, one of each rank, and return their folders by name."""
    draws = torch.Generator().manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    shapes = read_base_spec(base).linear_shapes
    folders = {}
    for index, rank in enumerate(ranks):
        tensors = {}
        for path, (num_out, num_in) in shapes.items():
            if path.rpartition(".")[2] in targets:
                name = f"base_model.model.{path}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, num_in, generator=draws) * _DELTA_STD
                tensors[f"{name}.lora_B.weight"] = torch.randn(num_out, rank, generator=draws) * _DELTA_STD
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=rank, target_modules=targets, inference_mode=True
        )
        folders[f"lora-{index}"] = _write_adapter(folder / f"lora-{index}", config, tensors)
    return folders


def write_soft_prompt(folder: Path, base: Path, num_virtual_tokens: int, *, seed: int = 0) -> Path:
    """Write a soft prompt and return its folder."""
    draws = torch.Generator().manual_seed(seed)
    width = read_base_spec(base).d_model
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=num_virtual_tokens,
        token_dim=width,
        num_transformer_submodules=1,
        inference_mode=True,
    )
    rows_PD = torch.randn(num_virtual_tokens, width, generator=draws) * _DELTA_STD
    return _write_adapter(folder, config, {"prompt_embeddings": rows_PD})


def _write_adapter(folder: Path, config: LoraConfig | PromptTuningConfig, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of just so many tokens: bytes, then letters put together ever longer."""
    vocab = {token: index for index, token in enumerate((*_SPECIAL, *pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in itertools.islice(_merges(), vocab_size - len(vocab)):
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_SPECIAL[0], bos_token=_SPECIAL[1], eos_token=_SPECIAL[2]
    )


def _merges() -> Iterator[tuple[str, str]]:
    letters = string.ascii_lowercase
    pairs = [left + right for left, right in itertools.product(letters, repeat=2)]
    yield from ((pair[0], pair[1]) for pair in pairs)
    # As byte-level tokenizers write the space before a word.
    yield from (("Ġ", pair) for pair in pairs)
    yield from itertools.product(pairs, letters)
    yield from itertools.product([f"Ġ{pair}" for pair in pairs], letters)
    yield from itertools.product(pairs, pairs)
