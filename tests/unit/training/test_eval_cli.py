"""`medley eval adapters`: a recipe's validation part, answered by the base and by adapters, written down."""

import json
import os

import pytest
from typer.testing import CliRunner

from tests.unit.training.test_cli import ABOUT
from training.eval_cli import app

pytestmark = pytest.mark.torch


@pytest.fixture
def recipe(tmp_path, tiny_base):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{ABOUT}\nbase: {tiny_base}\nlora: {{rank: 2}}\n")
    return path


@pytest.fixture
def tickets(tmp_path, tiny_base):
    """An untrained LoRA: it answers as the base does."""
    from peft import LoraConfig, TaskType, get_peft_model

    from training.base_model import load_base
    from training.export import export_adapter

    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=2, target_modules=["q"])
    export_adapter(get_peft_model(load_base(str(tiny_base)).model, config), tmp_path / "tickets", "tiny-base")
    return tmp_path / "tickets"


def _run(tmp_path, recipe, data, *more):
    places = ["--data", str(data), "--out", str(tmp_path / "report")]
    return CliRunner().invoke(app, ["adapters", "--config", str(recipe), *places, *more], catch_exceptions=False)


def test_eval_adapters_writes_the_report_of_base_and_adapter(tmp_path, recipe, tickets, tiny_data):
    result = _run(tmp_path, recipe, tiny_data, "--adapter", f"tickets={tickets}", "--num", "2")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [system["name"] for system in written["systems"]] == ["base", "tickets", "lead-3"]
    assert len(written["cases"]) == 2
    assert "20 tickets" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("adapter", ["tickets", "=folder", "tickets="])
def test_eval_adapters_malformed_adapter_is_one_line(tmp_path, recipe, tiny_data, adapter):
    result = _run(tmp_path, recipe, tiny_data, "--adapter", adapter)
    assert result.exit_code == os.EX_DATAERR
    assert "NAME=FOLDER" in result.stderr
