"""A tokenizer and a model of a few thousand weights, and a corpus of a few lines."""

import json
import lzma

import pytest

TEXTS = [
    "#Person1#: Hello, I want to book a table for 4 people at 7:30 pm.",
    "#Person2#: Certainly. What is your name, please?",
    "Summarize the following conversation.\n\nSummary: #Person1# books a table.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from training.data.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS * 5, vocab_size=400)


@pytest.fixture
def tiny_base(tmp_path, tiny_tokenizer):
    """A folder with a random base of the real one's kind."""
    from training.config import ModelShape
    from training.export import export_model, write_base_manifest
    from training.model import build_model

    folder = tmp_path / "tiny-base"
    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=1)
    export_model(build_model(shape, tiny_tokenizer, seed=1), tiny_tokenizer, folder)
    write_base_manifest("tiny-base", "Sum up.\n\n{{ text }}", folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path):
    """A data folder with a summary data set of twelve dialogues to learn from and two to validate on."""
    rows = [
        {
            "id": f"{split}_{number}",
            "split": split,
            "dialogue": f"#Person1#: I want {number} tickets.\n#Person2#: That is ${number}0, please.",
            "summaries": [f"#Person1# buys {number} tickets."],
            "topics": ["tickets"],
        }
        for split, numbers in (("train", range(1, 13)), ("validation", range(20, 22)))
        for number in numbers
    ]
    folder = tmp_path / "data"
    (folder / "summaries").mkdir(parents=True)
    with lzma.open(folder / "summaries" / "dialogsum.jsonl.xz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def tiny_llama(tmp_path, tiny_tokenizer):
    """A folder with a random decoder-only base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), **shape, **ids, num_key_value_heads=2)
    folder = tmp_path / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
