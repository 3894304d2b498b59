"""Adapter recipes change the adapter alone, and publish folders the server's own reader accepts."""

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.adapter_weights import WeightAdapterWeights
from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from tests.fixtures.recipes import TICKETS

pytestmark = pytest.mark.torch
ABOUT = f"""{TICKETS}
loop: {{max_steps: 6, learning_rate: 0.01, warmup_steps: 1, evaluate_every: 3, checkpoint_every: 3, log_every: 1,
  bfloat16: false, num_threads: 1, tensorboard: false}}
"""


def _train(command, tmp_path, base, data, extra, *overrides):
    from training.cli import app

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{ABOUT}\nbase: {base}\n{extra}\n")
    arguments = [command, "--config", str(recipe), "--data", str(data), "--run", str(tmp_path / "run")]
    arguments += [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return tmp_path / "run" / "result"


def _hashes(folder: Path):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_train_lora_changes_only_lora_tensors(tmp_path, tiny_base, tiny_data):
    from safetensors.numpy import load_file

    before = _hashes(tiny_base)
    out = _train("lora", tmp_path, tiny_base, tiny_data, "lora: {rank: 4, alpha: 8}")
    assert _hashes(tiny_base) == before
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-000006" / "weights.safetensors")
    assert trained
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    weights = read_adapter(out, read_base_spec(tiny_base), CodecLimits())
    assert isinstance(weights, WeightAdapterWeights)
    assert weights.max_rank == 4
    assert all(change.lora.lora_b.any() for change in weights.linears.values())


def test_train_lora_manifest_and_card_say_what_was_made(tmp_path, tiny_base, tiny_data):
    out = _train("lora", tmp_path, tiny_base, tiny_data, "lora: {rank: 4, alpha: 8}", "adapter.metrics=[chrf, rouge]")
    spec = read_base_spec(tiny_base)
    manifest = inspect_adapter(out, spec, CodecLimits(), "tickets")
    assert manifest.base_fingerprint == spec.fingerprint
    assert manifest.base_weights_digest == spec.weights_digest
    assert manifest.prompt_template == "Sum up.\n\n{{ text }}"
    assert set(manifest.scores) == {"rouge1", "rouge2", "rougeL"}
    assert manifest.metrics == ("chrf", "rouge")
    card = (out / "card.md").read_text()
    assert "LEAD-3" in card
    assert "seed 13" in card
    assert "Samples" not in card
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def test_train_lora_card_shows_the_first_validation_answers_where_asked(tmp_path, tiny_base, tiny_data):
    out = _train("lora", tmp_path, tiny_base, tiny_data, "lora: {rank: 4, alpha: 8}", "adapter.num_samples=1")
    card = (out / "card.md").read_text()
    assert "\n| #Person1# buys 20 tickets. | " in card
    assert "buys 21 tickets" not in card


def test_train_prompt_trains_every_row_that_is_used(tmp_path, tiny_base, tiny_data):
    import torch
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    out = _train("prompt", tmp_path, tiny_base, tiny_data, "prompt: {num_virtual_tokens: 5, init_text: book a table}")
    tensors = load_file(out / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    # PEFT would keep a second set of rows for encoder-decoder models and never use it.
    assert tensors["prompt_embeddings"].shape == (5, 32)
    table = load_file(tiny_base / "model.safetensors")["shared.weight"]
    ids = PreTrainedTokenizerFast.from_pretrained(tiny_base)("book a table", add_special_tokens=False)["input_ids"]
    start = table[torch.tensor((ids * 5)[:5])]
    moved = (tensors["prompt_embeddings"].float() - start.float()).abs().amax(dim=1) > 0
    assert moved.all()
    weights = read_adapter(out, read_base_spec(tiny_base), CodecLimits())
    assert weights.embeddings.shape == (5, 32)


def test_train_unknown_key_exits_with_one_line(tmp_path, tiny_base, tiny_data):
    from training.cli import app

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{ABOUT}\nbase: {tiny_base}\nranks: 3\n")
    result = CliRunner().invoke(app, ["lora", "--config", str(recipe), "--data", str(tiny_data)])
    assert result.exit_code != 0
    assert "unknown key 'ranks'" in result.output
