"""`medley train METHOD`: one command a method, what it says at its end, and mistakes that end it in one line."""

import os
import sys

import pytest
from typer.testing import CliRunner

from tests.fixtures.recipes import TICKETS
from training.cli import app
from training.methods import METHODS

ABOUT = f"""{TICKETS}
loop: {{max_steps: 4, learning_rate: 0.01, warmup_steps: 1, evaluate_every: 2, checkpoint_every: 2, log_every: 1,
  bfloat16: false, num_threads: 1, tensorboard: false}}
"""


def _arguments(tmp_path, base, data, section, *more):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{ABOUT}\nbase: {base}\n{section}\n")
    return [section.split(":")[0], "--config", str(recipe), "--data", str(data), "--run", str(tmp_path / "run"), *more]


def _run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_every_method_has_a_command_with_a_summary():
    text = _run("--help").output
    assert [name for name in ("base", *METHODS) if f" {name} " not in text] == []
    assert "Low-rank updates beside linear layers." in text


def test_help_needs_no_torch():
    code = "import sys, training.cli; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_alias_without_push_is_refused(tmp_path):
    result = _run(*_arguments(tmp_path, "none", tmp_path, "lora: {}", "--alias", "canary"))
    assert result.exit_code == os.EX_DATAERR
    assert "--alias needs --push" in result.stderr


@pytest.mark.torch
def test_lora_says_at_its_end_how_to_push(tmp_path, tiny_base, tiny_data):
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, "lora: {rank: 2}"))
    last = result.output.strip().splitlines()[-1]
    assert last.endswith(f"medley adapters push {tmp_path}/run/result --name tickets")


@pytest.mark.torch
def test_full_says_at_its_end_that_it_is_a_base(tmp_path, tiny_base, tiny_data):
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, "full: {}", "--set", "loop.max_steps=2"))
    last = result.output.strip().splitlines()[-1]
    assert "no running server can take as an adapter" in last
    assert last.endswith(f"medley serve --model {tmp_path}/run/result")


@pytest.mark.torch
@pytest.mark.parametrize("section", ["full: {}", "bottleneck: {width: 4}", "selective: {tensors: last-layers}"])
def test_push_of_what_no_server_takes_is_refused_before_training(section, tmp_path, tiny_base, tiny_data):
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, section, "--push", "http://127.0.0.1:9"))
    assert result.exit_code == os.EX_DATAERR
    assert result.stderr.strip().splitlines()[-1].startswith("error: --push: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.torch
def test_resume_from_a_step_gives_the_same_result(tmp_path, tiny_base, tiny_data):
    arguments = _arguments(tmp_path, tiny_base, tiny_data, "lora: {rank: 2, dropout: 0.2}")
    assert _run(*arguments).exit_code == 0
    weights = (tmp_path / "run" / "result" / "adapter_model.safetensors").read_bytes()
    assert _run(*arguments, "--resume", "--from-step", "2").exit_code == 0
    assert (tmp_path / "run" / "result" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.torch
def test_loss_that_is_no_number_ends_in_one_line_of_advice(tmp_path, tiny_base, tiny_data):
    spoilt = ("--set", "loop.learning_rate=1.0e+30", "--set", "loop.relative_updates=false")
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, "full: {}", *spoilt))
    assert result.exit_code == os.EX_DATAERR
    assert "loop.max_grad_norm" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: the loss is nan")


@pytest.mark.torch
def test_check_reports_the_mixture_and_trains_nothing(tmp_path, tiny_base, tiny_data):
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, "lora: {rank: 2}", "--check"))
    assert result.exit_code == 0, result.output
    assert "| dialogsum | MIT |" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.torch
def test_check_of_broken_data_names_the_line_and_exits_with_an_error(tmp_path, tiny_base, tiny_data):
    (tiny_data / "summaries" / "broken.jsonl").write_text('{"dialogue": "Hi", "summaries": ["Hi."]}\n{"dialogue": \n')
    override = "data.sources=[{name: b, licence: MIT, files: [{path: summaries/broken.jsonl}]}]"
    result = _run(*_arguments(tmp_path, tiny_base, tiny_data, "lora: {}", "--check", "--set", override))
    assert result.exit_code == os.EX_DATAERR
    assert "broken.jsonl:2" in result.output
