"""Recipe files: strict keys, strict kinds, overrides."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import training.config
from training.config import BaseRecipe, fingerprint, load_adapter_recipe, load_recipe
from training.errors import TrainingConfigError
from training.methods import METHODS

CONFIGS = Path(training.config.__file__).parent / "configs"
SHIPPED = {
    "dialogsum": "lora",
    "dialogsum-topic": "lora",
    "tweetsumm": "lora",
    "clinic-note": "lora",
    "dialogsum-prompt": "prompt",
}


def test_load_recipe_of_the_base_comes_back_from_yaml_unchanged(tmp_path):
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml")
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(_plain(asdict(recipe))))
    assert load_recipe(BaseRecipe, copy) == recipe


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_load_adapter_recipe_shipped_file_comes_back_from_yaml_unchanged(name, tmp_path):
    recipe = load_adapter_recipe(SHIPPED[name], METHODS, CONFIGS / f"{name}.yaml")
    assert recipe.adapter.name == name
    values = _plain(asdict(recipe))
    values[SHIPPED[name]] = values.pop("method")
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(values))
    assert load_adapter_recipe(SHIPPED[name], METHODS, copy) == recipe


def test_shipped_recipes_are_all_listed():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"base", *SHIPPED}


@pytest.mark.parametrize("override", ["loop.max_step=3", "nonsense=1", "model.depth=2"])
def test_load_recipe_unknown_key_is_refused_with_its_name(override):
    with pytest.raises(TrainingConfigError, match=override.split("=")[0].split(".")[-1]):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


@pytest.mark.parametrize("override", ["loop.max_steps=many", "loop.bfloat16=1", "loop=3", "length_limits=[1, 2, 3]"])
def test_load_recipe_wrong_kind_is_refused(override):
    with pytest.raises(TrainingConfigError):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


@pytest.mark.parametrize("override", ["loop.max_steps", "loop.max_steps.deep=1"])
def test_load_recipe_malformed_override_is_refused(override):
    with pytest.raises(TrainingConfigError):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


def test_load_recipe_missing_key_is_refused(tmp_path):
    path = tmp_path / "part.yaml"
    path.write_text("data: {dataset: dialogsum}")
    with pytest.raises(TrainingConfigError, match="adapter"):
        load_adapter_recipe("lora", METHODS, path)


def test_load_recipe_override_changes_one_value():
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.max_steps=7", "model.d_ff=8"])
    assert (recipe.loop.max_steps, recipe.model.d_ff) == (7, 8)


def test_fingerprint_length_may_differ_but_rate_may_not():
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml")
    longer = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.max_steps=9", "loop.log_every=1"])
    faster = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.learning_rate=0.5"])
    assert fingerprint(recipe) == fingerprint(longer) != fingerprint(faster)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
